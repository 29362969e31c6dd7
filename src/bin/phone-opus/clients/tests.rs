//! Plans over configuration files as people have them. Files on disk, and the question at the terminal, are
//! `tests/it/program/clients.rs`'s.

use serde_json::{Value, json};

use super::plan::{After, Force, Plan, PlanError, Record, install, uninstall};
use super::table::{CLIENTS, Client, ClientName};
use super::text::{Format, TextError};

const PROGRAM: &str = "/opt/phone-opus/bin/phone-opus";

fn entry(client: &Client) -> Vec<(String, Value)> {
    client.entry(PROGRAM, &["mcp", "serve"])
}

fn entries(client: &Client) -> Vec<Vec<(String, Value)>> {
    [["mcp", "serve"], ["mcp", "connect"]].map(|words| client.entry(PROGRAM, &words)).into()
}

fn value(entry: &[(String, Value)]) -> Value {
    Value::Object(entry.iter().cloned().collect())
}

/// JSON files, with `KEY` for the key of the client's servers.
const JSON: &[(&str, &str)] = &[
    ("nothing", ""),
    ("blank lines", "\n  \n"),
    ("an empty table", "{}"),
    ("an empty table and a line's end", "{}\n"),
    ("an empty table with a space", "{ }\n"),
    ("an empty table in lines", "{\n}\n"),
    ("only a comment", "// nothing here yet\n"),
    ("only a comment without a line's end", "/* nothing here yet */"),
    ("a comment in an empty table", "{\n  // nothing here yet\n}\n"),
    ("a comment in an empty table of one line", "{ /* nothing here yet */ }\n"),
    ("no servers", "{\n  \"theme\": \"dark\",\n  \"numbers\": [1, 2.50, 1e400, -0]\n}\n"),
    ("no servers and a trailing comma", "{\n  \"theme\": \"dark\",\n}\n"),
    ("empty servers", "{\n  \"KEY\": {}\n}\n"),
    ("empty servers between others", "{\n  \"a\": {},\n  \"KEY\": {},\n  \"b\": []\n}\n"),
    ("empty servers in lines", "{\n\t\"KEY\": {\n\t}\n}\n"),
    ("empty servers with a comment", "{\n    \"KEY\": {\n        // \"old\": { \"command\": \"old\" }\n    }\n}\n"),
    ("empty servers in one line", "{\"KEY\": {}}"),
    ("empty servers, minified", "{\"a\":1,\"KEY\":{}}"),
    (
        "a server",
        "{\n  \"KEY\": {\n    \"docs\": {\n      \"command\": \"npx\",\n      \"args\": [\n        \"-y\",\n        \"docs\"\n      ],\n      \"env\": { \"KEY\": \"s3cr3t\" }\n    }\n  }\n}\n",
    ),
    ("a server and a trailing comma", "{\n  \"KEY\": {\n    \"docs\": { \"command\": \"docs\" },\n  },\n}\n"),
    ("a server in one line", "{ \"KEY\": { \"docs\": { \"command\": \"docs\" } } }\n"),
    ("a server and a trailing comma in one line", "{ \"KEY\": { \"docs\": { \"command\": \"docs\" }, }, }\n"),
    ("a server, minified", "{\"KEY\":{\"docs\":{\"command\":\"docs\"}},\"z\":null}"),
    ("a comment behind the last server", "{\n  \"KEY\": {\n    \"docs\": { \"command\": \"docs\" } // ours\n  }\n}\n"),
    (
        "comments behind the last server's comma",
        "{\n  \"KEY\": {\n    \"docs\": {}, /* a */ /* b */ // c\n    // \"old\": {}\n  }\n}\n",
    ),
    ("a comment before the comma", "{\n  \"KEY\": {\n    \"docs\": {} /* a */ ,\n  }\n}\n"),
    ("a comment over lines behind the last server", "{\n  \"KEY\": {\n    \"docs\": {} /* a\n    b */\n  }\n}\n"),
    (
        "a server that is commented out at the end",
        "{\n  \"KEY\": {\n    \"docs\": {}\n\n    // \"old\": {\n    //   \"command\": \"old\"\n    // }\n  }\n}\n",
    ),
    (
        "words that look like comments",
        "{\n  \"KEY\": {\n    \"docs\": { \"url\": \"https://docs/*\" },\n    \"more\": { \"x\": \"*/ // }\" }\n  }\n}\n",
    ),
    (
        "odd indentation",
        "{\n \"a\" : 1\n   ,\"KEY\":\n      { \"docs\":\n    { \"command\":\"docs\" }\n        , \"more\" : {}}\n  }\n",
    ),
    (
        "braces that close on the last line",
        "{\n    \"KEY\": {\n        \"docs\": {},\n        \"more\": { \"command\": \"x\" } } }",
    ),
    (
        "letters of every kind",
        "{\n  \"ключ\": \"значение 🦩\",\n  \"KEY\": {\n    \"日本\": { \"command\": \"\\u0041\\n\" }\n  }\n}\n",
    ),
    (
        "settings of an editor",
        "// Settings\n//\n// see the documentation\n{\n  \"theme\": {\n    \"mode\": \"system\", // or dark\n  },\n  /* fonts */\n  \"buffer_font_size\": 15,\n\n  \"KEY\": {\n    // our own\n    \"docs\": {\n      \"command\": \"docs\",\n      \"args\": [],\n    },\n  },\n  \"vim_mode\": true,\n}\n",
    ),
];

/// TOML files.
const TOML: &[(&str, &str)] = &[
    ("nothing", ""),
    ("a blank line", "\n"),
    ("only a comment", "# nothing here yet\n"),
    ("no servers", "model = \"gpt\"\n\n[projects.\"/home/ada/x\"]\ntrust_level = \"trusted\"\n"),
    ("no line's end", "model = \"gpt\" # the good one"),
    ("blank lines at the end", "model = \"gpt\"\n\n\n"),
    (
        "a server",
        "# Codex\nmodel   =   'gpt'\n\n[mcp_servers.docs] # documentation\ncommand = \"npx\"\nargs = [\n  \"-y\", # no questions\n  \"docs\",\n]\n\n[mcp_servers.docs.env]\nKEY = \"s3cr3t\"\n\n[tui]\nnotifications = true\n",
    ),
    ("a server at the end without a line's end", "[mcp_servers.docs]\ncommand = \"docs\""),
    ("a table of servers with a header", "[mcp_servers]\n  [mcp_servers.docs]\n  command = \"docs\"\n"),
    ("servers inline below a header", "[mcp_servers]\ndocs = { command = \"docs\" } # ours\n\n[tui]\nx = 1\n"),
    ("servers inline", "mcp_servers = { docs = { command = \"docs\", args = [\"a\"] } }\n[tui]\nx = 1\n"),
    ("an inline table of no servers", "mcp_servers = {}\n"),
    ("a dotted server", "mcp_servers.docs.command = \"docs\"\nmcp_servers.docs.args = []\n"),
    ("lists of tables", "[[hooks]]\nname = \"a\"\n\n[[hooks]]\nname = \"b\"\n[hooks.with]\nx = 1\n"),
    ("text over lines", "notice = \"\"\"\n[mcp_servers.phone-opus]\ncommand = \"x\"\n\"\"\"\n"),
    ("dates and numbers", "since = 2026-11-27T02:00:00Z\nx = 0x1F\ny = 1e3\nz = inf\n[a.b.c]\nd = 1\n"),
];

type Save = fn(&str) -> String;

/// What editors and platforms make of a text.
const AS_SAVED: [(&str, Save); 5] = [
    ("as it is", |text| text.to_owned()),
    ("lines end as on Windows", |text| text.replace('\n', "\r\n")),
    ("with a byte order mark", |text| format!("\u{feff}{text}")),
    ("with a byte order mark, lines as on Windows", |text| format!("\u{feff}{}", text.replace('\n', "\r\n"))),
    ("without the last line's end", |text| text.strip_suffix('\n').unwrap_or(text).to_owned()),
];

/// Every file, of every client, however it was saved.
fn each_file(mut try_one: impl FnMut(&'static Client, &str, &str)) {
    let mut tried = 0;
    for client in &CLIENTS {
        let files = if client.format == Format::Json { JSON } else { TOML };
        for (name, text) in files {
            for (how, save) in AS_SAVED {
                let saved = save(&text.replace("KEY", client.servers));
                try_one(client, &format!("{}, {name}, {how}", client.title), &saved);
                tried += 1;
            }
        }
    }
    assert!(tried > 1000, "{tried} files");
}

#[track_caller]
fn text(plan: &Plan) -> &str {
    match &plan.after {
        After::Text(text) => text,
        other => panic!("no text: {other:?}"),
    }
}

/// As it is after a while in the state directory.
fn kept(plan: &Plan) -> Option<Record> {
    let written = serde_json::to_string(plan.record.as_ref()?).expect("JSON");
    Some(serde_json::from_str(&written).expect("a record"))
}

#[test]
fn what_an_install_wrote_an_uninstall_takes_back_byte_for_byte() {
    each_file(|client, name, old| {
        let planned = install(client, Some(old), &entry(client), None, Force::No);
        let planned = planned.unwrap_or_else(|error| panic!("{name}: {error}"));
        let new = text(&planned);
        let said = client.format.read(new).expect("still readable");
        assert_eq!(said[client.servers]["phone-opus"], value(&entry(client)), "{name}:\n{new}");
        let record = kept(&planned);
        let again = install(client, Some(new), &entry(client), record.as_ref(), Force::No).expect("planned");
        assert_eq!((&again.after, again.record.as_ref()), (&After::Same, record.as_ref()), "{name}: twice is once");
        let back = uninstall(client, Some(new), &entries(client), record.as_ref(), Force::No).expect("planned");
        assert_eq!(text(&back), old, "{name}: by way of\n{new}");
        assert_eq!((back.record, back.kept), (None, Vec::new()), "{name}");
    });
}

#[test]
fn a_file_that_was_not_there_is_gone_again() {
    for client in &CLIENTS {
        let planned = install(client, None, &entry(client), None, Force::No).expect("planned");
        let new = text(&planned);
        assert!(new.ends_with('\n') && !new.starts_with('\n'), "{new}");
        let back = uninstall(client, Some(new), &entries(client), kept(&planned).as_ref(), Force::No).expect("planned");
        assert_eq!(back.after, After::Gone, "{}", client.title);
        // Somebody else has come to use it.
        let other = match client.format {
            Format::Json => new.replacen('{', "{\n  \"theme\": \"dark\",", 1),
            Format::Toml => format!("theme = \"dark\"\n{new}"),
        };
        let back =
            uninstall(client, Some(&other), &entries(client), kept(&planned).as_ref(), Force::No).expect("planned");
        let said = client.format.read(text(&back)).expect("readable");
        assert_eq!(said, json!({"theme": "dark"}), "{}", client.title);
    }
}

#[test]
fn without_a_record_what_would_be_written_now_is_taken_out_and_nothing_else() {
    each_file(|client, name, old| {
        let before = client.format.read(old).expect("readable");
        let planned = install(client, Some(old), &entry(client), None, Force::No).expect("planned");
        let back = uninstall(client, Some(text(&planned)), &entries(client), None, Force::No).expect("planned");
        let mut left = client.format.read(text(&back)).expect("readable");
        // A table that was made cannot be told from one that was there.
        if before.get(client.servers).is_none() && left.get(client.servers) == Some(&json!({})) {
            left.as_object_mut().expect("a table").remove(client.servers);
        }
        assert_eq!(left, before, "{name}");
        let other = client.entry("/somewhere/else/phone-opus", &["mcp", "serve"]);
        let planned = install(client, Some(old), &other, None, Force::No).expect("planned");
        let back = uninstall(client, Some(text(&planned)), &entries(client), None, Force::No).expect("planned");
        assert_eq!(back.after, After::Same, "{name}: written by nobody that is known");
        assert!(!back.kept.is_empty(), "{name}: and it is said");
    });
}

#[test]
fn what_others_write_meanwhile_stays() {
    each_file(|client, name, old| {
        let planned = install(client, Some(old), &entry(client), None, Force::No).expect("planned");
        let other = client.format.set(
            text(&planned),
            &[client.servers, "newcomer"],
            &super::text::Tree::table(&[("command".to_owned(), json!("new"))]),
        );
        let (other, _) = other.expect("added");
        let back = uninstall(client, Some(&other), &entries(client), kept(&planned).as_ref(), Force::No);
        let back = back.unwrap_or_else(|error| panic!("{name}: {error}\n{other}"));
        let mut wanted = client.format.read(old).expect("readable");
        wanted[client.servers]["newcomer"] = json!({"command": "new"});
        assert_eq!(client.format.read(text(&back)).expect("readable"), wanted, "{name}:\n{other}");
    });
}

#[test]
fn an_entry_its_user_has_edited_stays_whole_and_is_told_and_goes_by_force() {
    for client in &CLIENTS {
        let planned = install(client, None, &entry(client), None, Force::No).expect("planned");
        let path = [client.servers, "phone-opus", "args"];
        let path =
            if entry(client).iter().any(|(key, _)| key == "args") { path } else { [path[0], path[1], "enabled"] };
        let edited = client.format.rewrite(text(&planned), &path, "false", &json!(false)).expect("edited");
        let record = kept(&planned);
        let back = uninstall(client, Some(&edited), &entries(client), record.as_ref(), Force::No).expect("planned");
        assert_eq!((&back.after, &back.record), (&After::Same, &record), "{}", client.title);
        assert_eq!(back.kept, [path.join(".")], "{}", client.title);
        let forced = uninstall(client, Some(&edited), &entries(client), record.as_ref(), Force::Yes).expect("planned");
        assert_eq!((forced.after, forced.record), (After::Gone, None), "{}", client.title);
    }
}

#[test]
fn a_limit_the_user_has_set_stays_through_install_and_is_not_taken_for_ours() {
    let client = Client::named(ClientName::Codex);
    let old = "[mcp_servers.phone-opus]\ncommand = \"phone-opus\" # on PATH\nargs = [\"mcp\", \"serve\"]\ntool_timeout_sec = 900\nenv_vars = [\"CLAUDE_CONFIG_DIR\"]\n\n[mcp_servers.phone-opus.tools.consult]\napproval_mode = \"approve\"\n";
    let planned = install(client, Some(old), &entry(client), None, Force::No).expect("planned");
    assert_eq!(text(&planned), old.replace("\"phone-opus\" #", &format!("{PROGRAM:?} #")));
    assert_eq!(planned.kept, ["mcp_servers.phone-opus.tool_timeout_sec"]);
    let back = uninstall(client, Some(text(&planned)), &entries(client), kept(&planned).as_ref(), Force::No);
    assert_eq!(text(&back.expect("planned")), old, "what was there before the install is there after it");
}

/// Entries that people made by hand or by their client's own command.
#[test]
fn an_entry_that_was_there_gets_the_program_and_a_limit_it_lacks_and_gets_its_own_back() {
    let table: &[(ClientName, &str, &[&str])] = &[
        (
            ClientName::Claude,
            "{\n  \"mcpServers\": {\n    \"phone-opus\": {\n      \"type\": \"stdio\",\n      \"command\": \"phone-opus\",\n      \"args\": [\n        \"mcp\",\n        \"serve\"\n      ],\n      \"env\": {}\n    }\n  }\n}\n",
            &["mcpServers.phone-opus.command"],
        ),
        (
            ClientName::Gemini,
            "{\n  \"mcpServers\": {\n    \"phone-opus\": { \"command\": \"phone-opus\", \"args\": [\"mcp\", \"connect\"] } // by hand\n  }\n}\n",
            &["mcpServers.phone-opus.command", "mcpServers.phone-opus.args", "mcpServers.phone-opus.timeout"],
        ),
        (
            ClientName::Codex,
            "mcp_servers = { phone-opus = { command = \"/old/phone-opus\", args = [\"mcp\", \"serve\"] } }\n",
            &["mcp_servers.phone-opus.command", "mcp_servers.phone-opus.tool_timeout_sec"],
        ),
        (
            ClientName::Codex,
            "mcp_servers.phone-opus.command = \"/old/phone-opus\"\nmcp_servers.phone-opus.args = [\"mcp\", \"serve\"]\nmcp_servers.phone-opus.tool_timeout_sec = 70\n",
            &["mcp_servers.phone-opus.command"],
        ),
        (
            ClientName::Codex,
            "[mcp_servers.phone-opus]\nargs = [\"mcp\", \"serve\"]\ncommand = \"phone-opus\"\r\n\r\n[tui]\r\n",
            &["mcp_servers.phone-opus.command", "mcp_servers.phone-opus.tool_timeout_sec"],
        ),
        (
            ClientName::Opencode,
            "{\n  \"mcp\": {\n    \"phone-opus\": {\n      \"type\": \"local\", \"command\": [\"phone-opus\", \"mcp\", \"serve\"], \"enabled\": false\n    },\n  },\n}\n",
            &["mcp.phone-opus.command"],
        ),
    ];
    for (name, old, changed) in table {
        let client = Client::named(*name);
        let planned = install(client, Some(old), &entry(client), None, Force::No).expect("planned");
        let keys: Vec<_> = planned.changes.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, *changed, "{old}");
        let said = client.format.read(text(&planned)).expect("readable");
        let there = &said[client.servers]["phone-opus"];
        assert_eq!(super::table::words(there), [PROGRAM, "mcp", "serve"], "{there}");
        let record = kept(&planned);
        let back = uninstall(client, Some(text(&planned)), &entries(client), record.as_ref(), Force::No);
        assert_eq!(text(&back.expect("planned")), *old);
        // The program moves: what is remembered moves along, and what was there first is still known.
        let moved = client.entry("/new/phone-opus", &["mcp", "serve"]);
        let again = install(client, Some(text(&planned)), &moved, record.as_ref(), Force::No).expect("planned");
        let back = uninstall(client, Some(text(&again)), &entries(client), kept(&again).as_ref(), Force::No);
        assert_eq!(text(&back.expect("planned")), *old);
    }
}

#[test]
fn a_program_that_moved_is_written_anew_and_taken_back_whole() {
    each_file(|client, name, old| {
        let first = install(client, Some(old), &entry(client), None, Force::No).expect("planned");
        let moved = client.entry("/new/place/phone-opus", &["mcp", "connect"]);
        let record = kept(&first);
        let second = install(client, Some(text(&first)), &moved, record.as_ref(), Force::No);
        let second = second.unwrap_or_else(|error| panic!("{name}: {error}\n{}", text(&first)));
        let back = uninstall(client, Some(text(&second)), &[], kept(&second).as_ref(), Force::No).expect("planned");
        let (back, wanted) = (client.format.read(text(&back)), client.format.read(old));
        assert_eq!(back, wanted, "{name}");
    });
}

#[test]
fn a_name_that_somebody_else_has_is_refused_with_its_place_and_replaced_by_force() {
    let table = [
        (
            ClientName::Claude,
            "{\n  \"mcpServers\": {\n    \"phone-opus\": { \"url\": \"https://x\" }\n  }\n}\n",
            Some((3, 19)),
        ),
        (
            ClientName::Claude,
            "{\"mcpServers\":{\"phone-opus\":{\"command\":\"npx\",\"args\":[\"mcp\",\"serve\"]}}}",
            Some((1, 29)),
        ),
        (ClientName::Opencode, "{\n  \"mcp\": { \"phone-opus\": null }\n}\n", Some((2, 26))),
        (ClientName::Codex, "mcp_servers = { phone-opus = { command = \"other\" } }\n", Some((1, 30))),
    ];
    for (name, old, place) in table {
        let client = Client::named(name);
        let refused = install(client, Some(old), &entry(client), None, Force::No).expect_err("refused");
        assert!(matches!(refused, PlanError::Foreign { .. }), "{refused}");
        assert_eq!(refused.at().map(|at| (at.line, at.column)), place, "{old}");
        let forced = install(client, Some(old), &entry(client), None, Force::Yes).expect("planned");
        let said = client.format.read(text(&forced)).expect("readable");
        assert_eq!(said[client.servers]["phone-opus"], value(&entry(client)));
        let back = uninstall(client, Some(text(&forced)), &entries(client), kept(&forced).as_ref(), Force::No);
        assert_eq!(text(&back.expect("planned")), old);
    }
}

#[test]
fn a_broken_file_is_refused_with_its_place() {
    let table = [
        (ClientName::Claude, "{\n  \"a\": 1\n  \"b\": 2\n}\n", 2, 9),
        (ClientName::Cursor, "{\n  \"mcpServers\": {\n", 2, 17),
        (ClientName::Zed, "{\n  \"a\": tru\n}\n", 2, 8),
        (ClientName::Vscode, "{ \"a\": 1 } x", 1, 12),
        (ClientName::Gemini, "{ 'a': 1 }", 1, 3),
        (ClientName::Windsurf, "[1, 2]\n", 1, 1),
        (ClientName::Opencode, "{\n  \"mcp\": [],\n}\n", 2, 3),
        (ClientName::Claude, "{\n  \"mcpServers\": {},\n  \"mcpServers\": {}\n}\n", 3, 3),
        (ClientName::Claude, "{\n  \"x\": { \"y\": 1, \"y\": 2 }\n}\n", 2, 18),
        (ClientName::Codex, "model = \"gpt\"\n[mcp_servers\n", 2, 13),
        (ClientName::Codex, "model = gpt\n", 1, 9),
        (ClientName::Codex, "[a]\nx = 1\nx = 2\n", 3, 1),
        (ClientName::Codex, "\nmcp_servers = 1\n", 2, 1),
    ];
    let mut wrong = Vec::new();
    for (name, old, line, column) in table {
        let client = Client::named(name);
        for (how, save) in AS_SAVED {
            let old = save(old);
            let refused = install(client, Some(&old), &entry(client), None, Force::Yes).expect_err("refused");
            if !refused.to_string().contains(&format!("line {line}, column {column}: ")) {
                wrong.push(format!("{how}: {old:?}: {refused}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_form_in_which_more_would_change_is_left_to_its_user() {
    let client = Client::named(ClientName::Codex);
    for old in [
        "[mcp_servers.phone-opus]\ncommand = \"other\"\n",
        "mcp_servers.phone-opus.command = \"phone-opus\"\nmcp_servers.phone-opus.args = [\"mcp\", \"serve\"]\n",
    ] {
        let refused = install(client, Some(old), &entry(client), None, Force::Yes).expect_err("refused");
        assert_eq!(refused, PlanError::Text(TextError::Unsure), "{old}");
    }
}

#[test]
fn a_new_entry_looks_like_its_neighbours() {
    let table = [
        (
            ClientName::Cursor,
            "{\n\t\"mcpServers\": {\n\t\t\"docs\": { \"command\": \"docs\" } // ours\n\t}\n}\n",
            "{\n\t\"mcpServers\": {\n\t\t\"docs\": { \"command\": \"docs\" }, // ours\n\t\t\"phone-opus\": {\n\t\t\t\"command\": \"/p\",\n\t\t\t\"args\": [\"mcp\", \"serve\"]\n\t\t}\n\t}\n}\n",
        ),
        (
            ClientName::Zed,
            "{\n    \"vim_mode\": true,\n}\n",
            "{\n    \"vim_mode\": true,\n    \"context_servers\": {\n        \"phone-opus\": {\n            \"command\": \"/p\",\n            \"args\": [\"mcp\", \"serve\"]\n        }\n    },\n}\n",
        ),
        (
            ClientName::Claude,
            "{\"mcpServers\":{\"a\":{}}}",
            "{\"mcpServers\":{\"a\":{},\"phone-opus\":{\"type\":\"stdio\",\"command\":\"/p\",\"args\":[\"mcp\",\"serve\"]}}}",
        ),
        (
            ClientName::Codex,
            "model = \"gpt\"",
            "model = \"gpt\"\n\n[mcp_servers.phone-opus]\ncommand = \"/p\"\nargs = [\"mcp\", \"serve\"]\ntool_timeout_sec = 3660\n",
        ),
    ];
    for (name, old, new) in table {
        let client = Client::named(name);
        let entry = client.entry("/p", &["mcp", "serve"]);
        assert_eq!(text(&install(client, Some(old), &entry, None, Force::No).expect("planned")), new);
    }
}

#[test]
fn a_program_with_letters_that_mean_something_is_written_as_it_is() {
    for client in &CLIENTS {
        for program in ["/opt/a \"b\"\\c/phone-opus", "/opt/ünï/🦩/phone-opus", "/opt/it's {1}#2/phone-opus"] {
            let entry = client.entry(program, &["mcp", "serve"]);
            let planned = install(client, None, &entry, None, Force::No).expect("planned");
            let said = client.format.read(text(&planned)).expect("readable");
            let there = &said[client.servers]["phone-opus"];
            assert_eq!(super::table::words(there).first(), Some(&program), "{}", client.title);
        }
    }
}
