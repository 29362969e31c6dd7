//! Rules of the house that no compiler keeps, as searches through the sources. A program of its own
//! because it needs nothing of the library: it is built and run in seconds, before anything else.
//!
//! Each rule brings a line that breaks it, so that a search that finds nothing any more is noticed.
//!
//! Laws: L11, L12.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What must not be written, and where it may be all the same.
struct Rule {
    name: &'static str,
    /// Any of these, in code: comments and test modules are not looked at.
    never: &'static [&'static str],
    /// Folders and files under `src` in which it may stand.
    but_in: &'static [&'static str],
    /// A line that breaks the rule.
    such_as: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        name: "actors have no names: two systems run in one process (L12)",
        never: &["spawn(Some", "spawn_linked(Some", "spawn_instant(Some", "ractor::registry", "registry::where_is"],
        but_in: &[],
        such_as: "Worker::spawn_linked(Some(name), Worker, (), me.get_cell())",
    },
    Rule {
        name: "no process groups: a ref is passed at start (L12)",
        never: &["ractor::pg", "pg::join", "pg::get_members"],
        but_in: &[],
        such_as: "ractor::pg::join(group, cells);",
    },
    Rule {
        name: "only the program, a process that a host started, and a fault point in them end the process (L12)",
        never: &["process::exit", "process::abort", "libc::_exit"],
        but_in: &["bin", "process", "failpoints"],
        such_as: "std::process::exit(1);",
    },
    Rule {
        name: "the library changes no globals (L12)",
        never: &["env::set_var", "env::remove_var", "set_current_dir", "panic::set_hook", "set_global_default"],
        but_in: &["bin"],
        such_as: "std::panic::set_hook(Box::new(|_| {}));",
    },
    Rule {
        name: "no statics with a state, nor thread-locals (L12)",
        never: &["static mut ", "thread_local!"],
        but_in: &["bin"],
        such_as: "thread_local! { static X: Cell<u8> = Cell::new(0) }",
    },
    Rule {
        name: "sessions and groups are read in the process table: one led from outside has no number a pid type can hold",
        never: &["getsid(", "getpgrp(", "getpgid("],
        but_in: &[],
        such_as: "let session = rustix::process::getsid(None)?;",
    },
    Rule {
        name: "SQL stands in the store",
        never: &["rusqlite", "SELECT ", "INSERT INTO", "DELETE FROM", "CREATE TABLE", "PRAGMA "],
        but_in: &["jobs/store", "fleet/postgres"],
        such_as: "connection.execute(\"DELETE FROM jobs\", [])?;",
    },
    Rule {
        name: "stdout has one owner (L11)",
        never: &["println!", "print!(", "io::stdout()", "stdio::stdout()"],
        but_in: &["bin", "process", "base/stdio.rs"],
        such_as: "println!(\"{answer}\");",
    },
    Rule {
        name: "tasks are boxed: each type of future costs a hundred functions more (base/tasks.rs)",
        never: &["tokio::spawn(", "task::spawn_blocking(", "JoinSet"],
        but_in: &["base/tasks.rs", "testkit", "bin"],
        such_as: "tokio::spawn(async move { kept.await });",
    },
    Rule {
        name: "no string errors and no anyhow",
        never: &["Box<dyn Error", "Box<dyn std::error::Error", "anyhow"],
        but_in: &[],
        such_as: "fn f() -> Result<(), Box<dyn std::error::Error>> {",
    },
];

/// The folders and files of `src`, bottom first: each may use those that stand before it, and no other.
const LAYERS: &[&str] = &[
    "base",
    "checkout",
    "places",
    "failpoints",
    "protocol",
    "exec",
    "jobs",
    "fleet",
    "agents",
    "config",
    "telemetry",
    "tools",
    "runner",
    "waiting",
    "worker",
    "process",
    "rollout",
    "daemon",
    "seen",
    "dashboard",
    "actors",
    "system",
    "bridge",
    "testkit",
    "bin",
];

/// Types whose statics have a state.
const STATEFUL: &[&str] = &[
    "Mutex", "RwLock", "Atomic", "OnceLock", "LazyLock", "OnceCell", "LazyCell", "RefCell", "Cell<", "Notify", "Sender",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of code of a source, with their numbers: without comments, and without what is compiled for tests only.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut rest = (1..).zip(text.lines());
    while let Some((number, line)) = rest.next() {
        if ["#[cfg(test)]", "#[cfg(all(test,"].iter().any(|test| line.trim_start().starts_with(test)) {
            // The item ends at a line that closes it at the same depth, or at its semicolon.
            let indent = line.len() - line.trim_start().len();
            let ends = |line: &str| {
                let depth = line.len() - line.trim_start().len();
                depth == indent && (line.trim_end() == "}" || (line.ends_with(';') && !line.contains('{')))
            };
            rest.by_ref().find(|(_, line)| ends(line));
            continue;
        }
        let line = line.split_once("//").map_or(line, |(before, _)| before);
        if !line.trim().is_empty() {
            lines.push((number, line.to_owned()));
        }
    }
    lines
}

/// Where the sources break a rule; `file` is relative to `src`.
fn breaks(rule: &Rule, file: &str, text: &str) -> Vec<String> {
    if rule.but_in.iter().any(|place| file == *place || file.starts_with(&format!("{place}/"))) {
        return Vec::new();
    }
    let found = code(text).into_iter().filter(|(_, line)| rule.never.iter().any(|never| line.contains(never)));
    found.map(|(number, line)| format!("{}: src/{file}:{number}: {}", rule.name, line.trim())).collect()
}

/// Statics with a state, wherever their type is broken into lines.
fn stateful_statics(file: &str, text: &str) -> Vec<String> {
    let lines = code(text);
    let declares = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
        line.starts_with("static ")
    };
    (0..lines.len())
        .filter(|at| declares(&lines[*at].1))
        .filter_map(|at| {
            let item: String = lines[at..].iter().take(20).map(|(_, line)| &line[..]).collect();
            let item = item.split(';').next().unwrap_or_default();
            let stateful = STATEFUL.iter().any(|kind| item.contains(kind));
            stateful.then(|| format!("a static with a state: src/{file}:{}: {item}", lines[at].0))
        })
        .collect()
}

fn sources() -> Vec<(String, String)> {
    let src = root().join("src");
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&src).expect("under src").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).expect("a source"))
    };
    // A module of tests in a file of its own is not compiled into the library.
    let tested =
        |path: &PathBuf| !path.ends_with("tests.rs") && !path.components().any(|part| part.as_os_str() == "tests");
    rust_files(&src)
        .into_iter()
        .filter(|path| tested(&path.strip_prefix(&src).expect("under src").to_owned()))
        .map(read)
        .collect()
}

/// The folder or file of `src` that a source belongs to.
fn room(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or(file)
}

/// The rooms a source names: `crate::room` anywhere in its code, and each first name of `crate::{...}`.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let code: String = code(text).into_iter().map(|(_, line)| line + "\n").collect();
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    let mut named = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        match path.strip_prefix('{') {
            Some(group) => {
                named.extend(group.split('}').next().unwrap_or_default().split(',').map(str::trim).map(word))
            }
            None => named.extend([word(path)]),
        }
    }
    named.retain(|name| LAYERS.contains(&&name[..]));
    named
}

fn height(room: &str) -> usize {
    LAYERS.iter().position(|layer| *layer == room).unwrap_or_else(|| panic!("{room} has no place in LAYERS"))
}

#[test]
fn no_folder_reaches_upwards() {
    let mut upwards: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (file, text) in sources().iter().filter(|(file, _)| file != "lib.rs") {
        for named in rooms_named(text) {
            if height(&named) > height(room(file)) {
                upwards.entry((room(file).to_owned(), named)).or_default().push(file.clone());
            }
        }
    }
    assert!(upwards.is_empty(), "these reach upwards: {upwards:#?}");
}

#[test]
fn the_map_shows_the_layers_as_they_are() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the map");
    let table = page.split("\n## Layers\n").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a chapter");
    let shown: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(folder, _)| folder)).collect();
    assert_eq!(shown, LAYERS);
    let mut folders: Vec<String> = std::fs::read_dir(root().join("src"))
        .expect("the sources")
        .map(|entry| room(&entry.expect("an entry").file_name().to_string_lossy()).to_owned())
        .filter(|name| name != "lib")
        .collect();
    folders.sort();
    let mut layers = LAYERS.to_vec();
    layers.sort_unstable();
    assert_eq!(folders, layers, "each folder has its place");
}

/// The map's tables name files and folders by the end of their path, as `actors/root.rs`, `root.rs` or `store/`.
#[test]
fn what_the_map_names_is_there_and_every_actor_is_named() {
    let map = page("ARCHITECTURE.md");
    let under = |folder: &str| rust_files(&root().join(folder));
    let files: Vec<String> =
        ["src", "tests"].into_iter().flat_map(under).map(|path| path.display().to_string()).collect();
    let tables: Vec<&str> = map.lines().filter(|line| line.starts_with("| ")).collect();
    let named: BTreeSet<&str> = tables.iter().flat_map(|line| quoted(line)).collect();
    let files_named = || named.iter().filter(|name| name.ends_with(".rs") || name.ends_with('/'));
    let is_there = |name: &&&str| match name.strip_suffix('/') {
        Some(folder) => root().join(folder).is_dir() || files.iter().any(|file| file.contains(&format!("/{folder}/"))),
        None => files.iter().any(|file| file.ends_with(&format!("/{name}"))),
    };
    let gone: Vec<_> = files_named().filter(|name| !is_there(name)).collect();
    assert!(gone.is_empty(), "the map names what is not there: {gone:?}");
    assert!(files_named().count() > 20, "the map names {} files and folders", files_named().count());
    for entry in std::fs::read_dir(root().join("src/actors")).expect("the actors") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        let name = if entry.path().is_dir() { format!("{name}/") } else { name };
        assert!(name == "mod.rs" || named.contains(&name[..]), "the map does not say what actors/{name} is");
    }
}

#[test]
fn the_layers_are_read_from_code_and_not_from_what_is_said() {
    let named = |text: &str| rooms_named(text).into_iter().collect::<Vec<_>>();
    assert_eq!(named("use crate::tools::Tool;\nfn f() { crate::exec::g() }\n"), ["exec", "tools"]);
    assert_eq!(named("use crate::{jobs::JobId, tools};\n"), ["jobs", "tools"]);
    assert_eq!(named("/// [`X`](crate::tools::X)\nfn f() {} // crate::exec\n"), Vec::<String>::new());
    assert_eq!(named("#[cfg(test)]\nmod tests {\n    use crate::tools::X;\n}\n"), Vec::<String>::new());
    assert_eq!(room("actors/jobs/mod.rs"), "actors");
    assert_eq!(room("config.rs"), "config");
}

#[test]
fn the_sources_keep_the_rules_of_the_house() {
    let sources = sources();
    assert!(sources.len() > 50, "{} sources were found", sources.len());
    let mut broken = Vec::new();
    for (file, text) in &sources {
        broken.extend(RULES.iter().flat_map(|rule| breaks(rule, file, text)));
        if !file.starts_with("bin/") {
            broken.extend(stateful_statics(file, text));
        }
    }
    assert!(broken.is_empty(), "{} places:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn each_rule_finds_what_breaks_it_and_nothing_that_is_said_about_it() {
    for rule in RULES {
        let guilty = format!("fn f() {{\n    {}\n}}\n", rule.such_as);
        assert_eq!(breaks(rule, "x.rs", &guilty).len(), 1, "{}", rule.name);
        let said = format!("/// {}\nfn f() {{}} // {}\n", rule.such_as, rule.such_as);
        assert_eq!(breaks(rule, "x.rs", &said), Vec::<String>::new(), "{}", rule.name);
        let tested = format!("#[cfg(test)]\nmod tests {{\n    {}\n}}\n", rule.such_as);
        assert_eq!(breaks(rule, "x.rs", &tested), Vec::<String>::new(), "{}", rule.name);
        let tested = format!("#[cfg(all(test, target_os = \"linux\"))]\nmod tests {{\n    {}\n}}\n", rule.such_as);
        assert_eq!(breaks(rule, "x.rs", &tested), Vec::<String>::new(), "{}", rule.name);
        let after = format!("#[cfg(test)]\nmod tests;\n{}\n", rule.such_as);
        assert_eq!(breaks(rule, "x.rs", &after).len(), 1, "{}", rule.name);
        for place in rule.but_in {
            let file = if place.ends_with(".rs") { (*place).to_owned() } else { format!("{place}/x.rs") };
            assert_eq!(breaks(rule, &file, &guilty), Vec::<String>::new(), "{} in {file}", rule.name);
        }
    }
    assert_eq!(stateful_statics("x.rs", "pub static COUNT:\n    AtomicU64 = AtomicU64::new(0);\n").len(), 1);
    assert_eq!(
        stateful_statics("x.rs", "static NAMES: &[&str] = &[\"a\"];\nfn f(x: &'static Mutex<()>) {}\n").len(),
        0
    );
}

/// The names of the public types a source declares.
fn public_types(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub "))?;
        let (kind, rest) = line.split_once(' ')?;
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        ["struct", "enum", "trait", "type", "union"].contains(&kind).then_some(name).filter(|name| !name.is_empty())
    };
    // What a macro names has no name here.
    code(text).iter().filter_map(|(_, line)| name(line)).collect()
}

#[test]
fn a_public_type_name_stands_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in sources() {
        for name in public_types(&text) {
            places.entry(name).or_default().push(file.clone());
        }
    }
    assert!(places.len() > 300, "{} public types were found", places.len());
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "one word for two things; name what differs: {places:#?}");
}

#[test]
fn public_types_are_found_wherever_they_stand() {
    let found = |text: &str| public_types(text).into_iter().collect::<Vec<_>>();
    let all =
        "pub struct A;\npub(crate) enum B<T> {}\nmod m {\n    pub trait C: Send {}\n}\npub type D<'a> = &'a str;\n";
    assert_eq!(found(all), ["A", "B", "C", "D"]);
    let none = "struct A;\npub(super) enum B {}\n// pub struct C;\npub fn d() {}\npub(crate) const E: u8 = 0;\n";
    assert_eq!(found(none), Vec::<String>::new());
    assert_eq!(found("#[cfg(test)]\nmod tests {\n    pub struct A;\n}\n"), Vec::<String>::new());
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The pages that people read, beside those of the benches and the interop tests.
fn pages() -> Vec<String> {
    let docs = std::fs::read_dir(root().join("docs")).expect("docs").map(|entry| entry.expect("an entry").file_name());
    let docs = docs.map(|name| format!("docs/{}", name.to_string_lossy())).filter(|name| name.ends_with(".md"));
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(str::to_owned)
        .into_iter()
        .chain(docs)
        .collect()
}

/// The cells of a table's rows that begin with this.
fn rows<'a>(page: &'a str, start: &str) -> Vec<Vec<&'a str>> {
    let rows = page.lines().filter(|line| line.starts_with(start));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_architecture_has_a_row_for_each_law_and_names_tests_that_exist() {
    let architecture = page("ARCHITECTURE.md");
    let laws = rows(&architecture, "| L");
    let numbers: Vec<_> = laws.iter().map(|law| law[0].to_owned()).collect();
    assert_eq!(numbers, (1..=20).map(|number| format!("L{number}")).collect::<Vec<_>>());
    let files = rust_files(&root().join("src")).into_iter().chain(rust_files(&root().join("tests")));
    let all: String = files.map(|path| std::fs::read_to_string(path).expect("a source")).collect();
    for law in &laws {
        let tests: Vec<_> = quoted(law[3]).into_iter().filter(|name| !name.starts_with("PHONE_OPUS_")).collect();
        assert!(!tests.is_empty() || law[2].starts_with("not in this version"), "{}: no test notices it", law[0]);
        let missing: Vec<_> = tests.into_iter().filter(|name| !all.contains(&format!("fn {name}("))).collect();
        assert!(missing.is_empty(), "{}: no such tests: {missing:?}", law[0]);
    }
}

/// The laws a module of tests says it shows, in the line `//! Laws: ...` of its head; `None` without such a line.
fn laws_of(text: &str) -> Option<BTreeSet<String>> {
    let line =
        text.lines().take_while(|line| line.starts_with("//!")).find_map(|line| line.strip_prefix("//! Laws: "))?;
    let words = line.split(|c: char| !c.is_alphanumeric()).filter(|word| word.starts_with('L'));
    Some(words.filter(|word| word[1..].parse::<u8>().is_ok()).map(str::to_owned).collect())
}

#[test]
fn each_law_is_named_by_the_test_modules_that_show_it() {
    let beside = |path: &PathBuf| path.ends_with("tests.rs");
    // The embedding program is somebody else's, what is searched in tests is nobody's; neither knows laws.
    let mut integration = rust_files(&root().join("tests"));
    let foreign = ["tests/embedding", "tests/offline"].map(|folder| root().join(folder));
    integration.retain(|path| !foreign.iter().any(|folder| path.starts_with(folder)));
    let units: Vec<_> = rust_files(&root().join("src")).into_iter().filter(beside).collect();
    let read = |path: &PathBuf| std::fs::read_to_string(path).expect("a test");
    let mut named = BTreeSet::new();
    for path in &integration {
        let lists_modules = path.ends_with("mod.rs") || path.ends_with("main.rs");
        let laws = laws_of(&read(path));
        assert!(
            lists_modules || laws.as_ref().is_some_and(|laws| !laws.is_empty()),
            "{path:?}: which laws does it show?"
        );
        named.extend(laws.unwrap_or_default());
    }
    named.extend(units.iter().filter_map(|path| laws_of(&read(path))).flatten());
    let architecture = page("ARCHITECTURE.md");
    for law in rows(&architecture, "| L").iter().filter(|law| !law[2].starts_with("not in this version")) {
        assert!(named.contains(law[0]), "{}: no module of tests names it", law[0]);
        // And a module with a test that the table names says so.
        for test in quoted(law[3]) {
            for path in integration.iter().filter(|path| read(path).contains(&format!("fn {test}("))) {
                let says = laws_of(&read(path)).is_some_and(|laws| laws.contains(law[0]));
                assert!(says, "{path:?} has {test} and does not name {}", law[0]);
            }
        }
    }
}

#[test]
fn every_rig_calls_every_law_of_the_kit() {
    let kit = page("src/testkit/invariants.rs");
    let laws: Vec<_> = kit.split("\npub fn ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
    let laws: Vec<_> = laws.into_iter().filter(|name| name.starts_with("invariant_")).collect();
    let rig = page("src/testkit/rig/verdict.rs");
    assert!(laws.len() >= 18, "{} laws were found", laws.len());
    let left_out: Vec<_> = laws.iter().filter(|law| !rig.contains(&format!("invariants::{law}("))).collect();
    assert!(left_out.is_empty(), "no rig calls {left_out:?}");
}

#[test]
fn every_fault_code_is_on_the_page_of_failures() {
    let sources = sources();
    let list = sources.iter().find_map(|(_, text)| text.split_once("\nfault_codes! {")).expect("the list of codes").1;
    let codes = list.lines().take_while(|line| *line != "}").filter_map(|line| line.split('"').nth(1));
    let codes: BTreeSet<_> = codes.map(|code| format!("`{code}`")).collect();
    let failures = page("docs/failures.md");
    let told: BTreeSet<_> = rows(&failures, "| `").into_iter().map(|row| row[0].to_owned()).collect();
    assert!(codes.len() > 50, "{} codes were found", codes.len());
    assert_eq!(codes, told);
}

/// The names of functions a text calls or declares: `name(`, `name::<T>(`, `name<'a>(`.
fn called(text: &str) -> BTreeSet<&str> {
    let ends = ["(", "::<", "<'"].into_iter().flat_map(|end| text.match_indices(end));
    let names = ends.filter_map(|(at, _)| text[..at].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next());
    names.filter(|name| !name.is_empty()).collect()
}

/// What is declared under each public path, by `docs/public-paths.txt`.
fn public_functions(list: &str) -> Vec<(&str, &str)> {
    let mut of = "";
    let mut functions = Vec::new();
    for line in list.lines() {
        match line.strip_prefix(' ') {
            None => of = line,
            Some(said) => {
                let name = said.split_once(" fn ").map(|(_, declared)| declared.split(['(', '<']).next());
                functions.extend(name.flatten().map(|name| (of, name)));
            }
        }
    }
    functions
}

/// The test kit's functions are documented; its chapter shows how they are put together.
#[test]
fn each_public_function_is_shown_by_an_example_a_page_or_the_documentation() {
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("a source");
    let programs = ["examples", "tests/embedding/src"].map(|folder| rust_files(&root().join(folder)));
    let mut text: String = programs.into_iter().flatten().map(read).collect();
    text.extend(pages().iter().map(|name| page(name)));
    for (_, source) in sources() {
        let said =
            source.lines().filter(|line| ["///", "//!"].iter().any(|begins| line.trim_start().starts_with(begins)));
        text.extend(said.map(|line| line.to_owned() + "\n"));
    }
    let (shown, list) = (called(&text), page("docs/public-paths.txt"));
    let functions = public_functions(&list);
    assert!(functions.len() > 300, "{} functions were found", functions.len());
    let unseen = functions.iter().filter(|(of, name)| !of.contains("::testkit") && !shown.contains(name));
    let unseen: Vec<_> = unseen.map(|(of, name)| format!("{of}: {name}")).collect();
    assert!(unseen.is_empty(), "shown nowhere; no API is `#[doc(hidden)]`:\n{}", unseen.join("\n"));
}

/// Types of others that public signatures name: a change of these is a change of ours.
const FOREIGN: &[(&str, &str)] = &[
    (
        "std",
        "Arc AsFd AsRef AsyncFnMut BTreeMap BTreeSet Box Child Clone Command Copy Cow Debug Default Deref Display Drop Duration Eq \
         Error ErrorKind ExitCode ExitStatus Fn FnMut FnOnce From FromIterator FromStr Future Hash Index Into IntoFuture \
         IntoIterator Item Iterator NonZero NonZeroU64 Option Ord OsStr OsString Output OwnedFd PartialEq PartialOrd Path PathBuf \
         Pin Read Result Self Send Stdio String StructuralPartialEq Sync SystemTime TryFrom Unpin Vec Write",
    ),
    ("bytes", "Bytes"),
    ("futures", "BoxFuture Stream"),
    ("ractor, as `phone_opus::ractor`", "ActorCell"),
    ("rustix, in the test kit", "Pid"),
    ("schemars", "JsonSchema"),
    ("serde", "Deserialize Serialize"),
    ("serde_json", "Map Value"),
    ("tokio", "AsyncFd AsyncRead AsyncWrite Receiver Sleep Stdout"),
];

/// A public enum of which everybody may know all variants: it cannot grow without a change of what it means.
const CLOSED: &[&str] = &["Evidence", "JobMode", "ReplayContract", "TargetWords"];

/// Structs with public fields that programs make themselves, with all of their fields or with `..Default::default()`. All others
/// can grow.
const MADE_BY_USERS: &[(&str, &str)] = &[
    (
        "what a program says",
        "AgentSite Annotations ClientSettings Config CustomAgent JobFilter RestartPolicy SessionLimits ToolDefinition ToolReply WorkerCommand \
         WorkerPolicy",
    ),
    (
        "what an agent or a machine says of a run, and what their tests say to them",
        "MachineEnd PermissionDenial RunExit RunVerdict",
    ),
    ("what the tests of a tool call it with", "InvocationId ToolCall"),
    ("numbers", "Generation SessionNumber UnixMillis"),
];

/// An entry of `docs/public-paths.txt`: its kind, its name, and the lines below it.
fn public_items(list: &str) -> Vec<(&str, &str, Vec<&str>)> {
    let mut items: Vec<(&str, &str, Vec<&str>)> = Vec::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        match (line.starts_with(' '), items.last_mut()) {
            (true, Some((_, _, said))) => said.push(line),
            _ => items.extend(line.split_once(" phone_opus::").map(|(kind, path)| (kind, path, Vec::new()))),
        }
    }
    items
}

fn last_name(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

/// The types an entry names: what is written as types are, but for variants, single letters, constants and texts.
fn types_named<'a>(kind: &str, said: &[&'a str]) -> BTreeSet<&'a str> {
    let mut named = BTreeSet::new();
    for line in said.iter().take(if kind == "constant" { 1 } else { usize::MAX }) {
        // A constant's value may be any text.
        let line = if kind == "constant" { line.split(" = ").next().unwrap_or(line) } else { line };
        let variant =
            line.strip_prefix("        ").filter(|rest| kind == "enum" && rest.starts_with(|c: char| c.is_uppercase()));
        let line = variant.map_or(line, |rest| rest.trim_start_matches(|c: char| c.is_alphanumeric()));
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        named.extend(words.filter(|word| {
            word.starts_with(|c: char| c.is_ascii_uppercase()) && word.contains(|c: char| c.is_ascii_lowercase())
        }));
    }
    named
}

#[test]
fn what_public_signatures_name_can_be_named_by_others() {
    let list = page("docs/public-paths.txt");
    let items = public_items(&list);
    assert!(items.len() > 100, "{} items were found", items.len());
    let mut known: BTreeSet<&str> = items.iter().map(|(_, path, _)| last_name(path)).collect();
    known.extend(FOREIGN.iter().flat_map(|(_, names)| names.split_whitespace()));
    // What a module of the kit hands on by its own name.
    let kit = page("src/testkit/mod.rs");
    known.extend(kit.lines().filter(|line| line.starts_with("pub use ")).flat_map(|line| words(line)));
    let mut unnamed = BTreeMap::new();
    for (kind, path, said) in &items {
        for name in types_named(kind, said).into_iter().filter(|name| !known.contains(name)) {
            unnamed.entry(name).or_insert_with(Vec::new).push(*path);
        }
    }
    assert!(unnamed.is_empty(), "named in public signatures and reachable at no public path: {unnamed:#?}");
}

#[test]
fn public_types_can_grow_or_are_known_never_to() {
    let list = page("docs/public-paths.txt");
    let made = || MADE_BY_USERS.iter().flat_map(|(_, names)| names.split_whitespace());
    let mut fixed = Vec::new();
    for (kind, path, said) in public_items(&list).into_iter().filter(|(_, path, _)| !path.contains("testkit")) {
        let grows = said.iter().any(|line| line.trim() == "#[non_exhaustive]" || line.trim() == "/* private fields */");
        let has_fields = said.iter().any(|line| line.starts_with("        pub ") || line.contains("(pub "));
        let may_be = match kind {
            "enum" => CLOSED.contains(&last_name(path)),
            "struct" => !has_fields || made().any(|name| name == last_name(path)),
            _ => true,
        };
        if !grows && !may_be {
            fixed.push(path);
        }
    }
    assert!(fixed.is_empty(), "neither `#[non_exhaustive]` nor listed above: {fixed:#?}");
}

#[test]
fn types_are_told_from_variants_constants_and_letters() {
    let list = "enum phone_opus::X\n    #[non_exhaustive]\n    pub enum X {\n        Alone,\n        With(Other),\n    }\n    pub fn a<T>(b: T) -> Far\nconstant phone_opus::Y\n    pub const Y: &str = \"Some Text\";";
    let items = public_items(list);
    let named: Vec<_> = items.iter().map(|(kind, _, said)| types_named(kind, said)).collect();
    assert_eq!(named, [BTreeSet::from(["Far", "Other"]), BTreeSet::new()]);
    assert_eq!((items[0].1, items[1].1), ("X", "Y"));
}

#[test]
fn what_is_called_is_told_from_what_is_only_named() {
    assert_eq!(called("a.b(1); c::<T>(); d; fn e<'a>(f: &'a str)"), BTreeSet::from(["b", "c", "e"]));
    let list = "struct phone_opus::X\n    pub struct X { pub a: fn(u8) }\n    pub async fn b<T>(c: impl Fn(T))\ntrait phone_opus::Y\n        fn d(&self);";
    assert_eq!(public_functions(list), [("struct phone_opus::X", "b"), ("trait phone_opus::Y", "d")]);
}

#[test]
fn what_the_pages_link_to_is_there() {
    for name in pages() {
        let text = page(&name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let there = root().join(&name).with_file_name(file);
            assert!(file.is_empty() || link.starts_with("http") || there.exists(), "{name} links to {link}");
        }
    }
}

/// What a package holds, as `include` in Cargo.toml says: folders, and what `*` stands for in one folder.
fn packed(path: &str) -> bool {
    let manifest = page("Cargo.toml");
    let list = manifest.split_once("\ninclude = [").and_then(|(_, rest)| rest.split_once(']')).expect("include").0;
    let patterns: Vec<_> = list.split('"').skip(1).step_by(2).map(|pattern| pattern.trim_start_matches('/')).collect();
    assert!(patterns.len() > 5, "{patterns:?}");
    patterns.iter().any(|pattern| match pattern.split_once('*') {
        Some((start, end)) => !path.contains('/') && path.starts_with(start) && path.ends_with(end),
        None => path == *pattern || path.starts_with(&format!("{pattern}/")),
    })
}

/// Whoever reads a page in a package, without the repository, finds what it leads to.
#[test]
fn what_packed_pages_link_to_is_packed() {
    let linked_pages =
        ["CHANGELOG.md", "benches/README.md", "packaging/README.md", "tests/interop/RESULTS.md"].map(str::to_owned);
    for name in pages().into_iter().chain(linked_pages) {
        assert!(packed(&name), "{name} is not packed");
        for link in page(&name).split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let Some(file) = Some(link).filter(|link| !link.is_empty() && !link.starts_with("http")) else { continue };
            let there = root().join(&name).with_file_name(file).canonicalize().expect("what is linked to");
            let top = root().canonicalize().expect("the repository");
            let file = there.strip_prefix(top).expect("a file of the repository").to_string_lossy().into_owned();
            assert!(packed(&file), "{name} links to {file}, which no package holds: see include in Cargo.toml");
        }
    }
    assert!(!packed("tests/it/main.rs") && !packed("linker/hot.ld"));
}

/// Our actors build in a tree in which somebody switches on ractor's `async-trait`.
#[test]
fn every_actor_can_be_written_as_ractors_async_trait_has_it() {
    let attribute = "#[cfg_attr(feature = \"ractor-async-trait\", ractor::async_trait)]";
    let mut actors = 0;
    for path in rust_files(&root().join("src")) {
        let text = std::fs::read_to_string(&path).expect("a source");
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for at in (0..lines.len()).filter(|at| lines[*at].starts_with("impl") && lines[*at].contains(" Actor for ")) {
            actors += 1;
            assert_eq!(lines[at - 1], attribute, "{path:?}, before {}", lines[at]);
        }
    }
    assert!(actors >= 13, "{actors} actors were found");
}

/// The files of `tests` that are programs of their own; each says in its head why it must be one.
const ALONE: &[&str] = &["exec_adoption", "house_rules"];

/// One program is linked once; a file beside it would be linked again, and a module nobody names would not be run.
#[test]
fn the_tests_are_one_program_and_name_all_their_modules() {
    let files = std::fs::read_dir(root().join("tests")).expect("tests").map(|entry| entry.expect("an entry").path());
    let mut alone: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect();
    alone.sort();
    let names: Vec<_> = alone.iter().map(|path| path.file_stem().expect("a name").to_string_lossy()).collect();
    assert_eq!(names, ALONE, "a test is a module of tests/it, by subject");
    for path in &alone {
        let text = std::fs::read_to_string(path).expect("a test");
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(head.contains("process of its own") || head.contains("program of its own"), "{path:?}: why alone?");
        assert!(!text.contains("\nuse phone_opus::testkit"), "{path:?}: what uses the kit is a module of tests/it");
    }
    let it = root().join("tests/it");
    for path in rust_files(&it).iter().filter(|path| **path != it.join("main.rs")) {
        let is_folder = path.ends_with("mod.rs");
        let module = if is_folder { path.parent().expect("a folder") } else { path };
        let name = module.file_stem().expect("a name").to_string_lossy();
        let folder = module.parent().expect("a folder");
        let parent = if folder == it { it.join("main.rs") } else { folder.join("mod.rs") };
        let declared = std::fs::read_to_string(&parent).expect("its parent");
        assert!(declared.lines().any(|line| line == format!("mod {name};")), "{parent:?} does not name {name}");
        let text = std::fs::read_to_string(path).expect("a test");
        assert!(!text.contains(&["mod ", "rig;"].concat()) || is_folder, "{path:?} has a rig of its own");
    }
}

/// The identifiers of a mangled name as far as they are this crate's, or of a program of its: those of its first path, and what
/// follows them in a method of a type of its own.
fn own_names(mangled: &str) -> Vec<&str> {
    let Some((before, rest)) = mangled.split_once("Cs*_10phone_opus") else { return Vec::new() };
    let is_method = before.rsplit(['.', '*']).next().is_some_and(|kind| {
        let kind = kind.trim_start_matches(['_', 'R', 'N', 'C', 'v']);
        kind.starts_with('M') && !kind.contains('I')
    });
    let mut rest = rest.split("Cs*_").next().unwrap_or_default();
    let mut names = Vec::new();
    while let Some(first) = rest.bytes().next() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number = rest[..digits].parse().ok().filter(|_| first != b'0');
        let name = number.and_then(|length: usize| {
            let begins = digits + usize::from(rest[digits..].starts_with('_'));
            rest.get(begins..begins + length).map(|name| (name, begins + length))
        });
        let behind = match name {
            Some((name, end)) => {
                names.push(name);
                end
            }
            None if !is_method || first == b'E' => break,
            // What refers back, or tells namesakes apart, ends with a line.
            None if first == b'B' || first == b's' => rest.find('_').map_or(1, |end| end + 1),
            None => 1,
        };
        rest = &rest[behind..];
    }
    names
}

/// The words of a text.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|one: char| !one.is_alphanumeric() && one != '_').collect()
}

/// What stands before a name where it is given.
const DEFINES: &[&str] = &["fn", "mod", "struct", "enum", "trait", "type", "const", "static"];

/// Whether a function of this name may be in the sources still: its modules are where they were, the name after them is given
/// in the last one's file, and all the others stand somewhere.
fn is_alive(mangled: &str, all: &BTreeSet<&str>) -> bool {
    let names = own_names(mangled);
    let in_place = [("src", "lib.rs"), ("src/bin/phone-opus", "main.rs")].iter().any(|(base, first)| {
        let (mut folder, mut file) = (root().join(base), root().join(base).join(first));
        for name in &names {
            let below = folder.join(name);
            let next = [below.join("mod.rs"), below.with_extension("rs")].into_iter().find(|file| file.is_file());
            let Some(next) = next else {
                let text = std::fs::read_to_string(file).expect("a source");
                return DEFINES.iter().any(|kind| {
                    let given = format!("{kind} {name}");
                    let mut found = text.split(&given).skip(1);
                    found.any(|after| !after.starts_with(|one: char| one.is_alphanumeric() || one == '_'))
                });
            };
            (folder, file) = (below, next);
        }
        true
    });
    in_place && names.iter().all(|name| all.contains(name))
}

#[test]
fn the_list_of_functions_for_the_linker_is_not_out_of_date() {
    let script = root().join("linker/hot.ld");
    // A package goes without it.
    let Ok(listed) = std::fs::read_to_string(script) else { return };
    let sources = sources();
    let all: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| words(text)).collect();
    let ours: Vec<&str> = listed.lines().filter(|line| line.contains("Cs*_10phone_opus")).collect();
    assert!(ours.len() > 100, "the list names functions of ours");
    let stale: Vec<String> =
        ours.iter().filter(|line| !is_alive(line, &all)).map(|line| own_names(line).join("::")).collect();
    assert!(
        stale.len() * 10 < ours.len(),
        "{} of {} names are nobody's any more, so make linker/hot.ld anew (linker/hot_functions.py): {:?} ...",
        stale.len(),
        ours.len(),
        &stale[..10]
    );
    let name = "    *(.text.[_u]*RNvMs_NtNtCs*_10phone_opus6actors7sessionNtB4_11SessionLoop8on_event*)";
    assert_eq!(own_names(name), ["actors", "session", "SessionLoop", "on_event"]);
    assert!(is_alive(name, &BTreeSet::from(["actors", "session", "SessionLoop", "on_event"])));
    assert!(!is_alive(name, &BTreeSet::from(["actors", "session", "SessionLoop"])), "the method has another name");
    let moved = name.replace("6actors", "4base");
    assert!(!is_alive(&moved, &BTreeSet::from(["base", "session", "SessionLoop", "on_event"])), "another folder");
}
