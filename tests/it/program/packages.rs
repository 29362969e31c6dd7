//! What lies in `packaging/`, held to the program: it names no other version, no tool and no command that the program does not
//! have, and what is made of it works.
//!
//! Laws: L11, L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use phone_opus::testkit::{Rig, TestClient, tried_program};
use serde_json::Value;

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_LOG", "warn")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).expect("a file of the repository")
}

fn parsed(file: &str) -> Value {
    serde_json::from_str(&read(file)).expect("JSON")
}

/// Every file below `packaging/`, and what lies elsewhere because those who read it look there.
fn files() -> Vec<String> {
    fn below(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { below(&path, found) } else { found.push(path) }
        }
    }
    let mut found = vec![root().join(MARKETPLACE)];
    below(&root().join("packaging"), &mut found);
    let name = |path: PathBuf| path.strip_prefix(root()).expect("of the repository").display().to_string();
    found.into_iter().map(name).collect()
}

const MARKETPLACE: &str = ".claude-plugin/marketplace.json";
const PLUGIN: &str = "packaging/claude-code/.claude-plugin/plugin.json";
const SKILL: &str = "packaging/claude-code/skills/second-opinion/SKILL.md";
const BUNDLE: &str = "packaging/mcpb/manifest.json";
const REGISTRY: &str = "packaging/registry/server.json";
const FORMULA: &str = "packaging/homebrew/phone-opus.rb";
const RELEASE: &str = "packaging/release";

/// What each format demands, by its own documentation: where it is, and whether what is there is right.
type Demand = (&'static str, &'static str, fn(&Value) -> bool);

const DEMANDS: &[Demand] = &[
    (MARKETPLACE, "/name", is_name),
    (MARKETPLACE, "/owner/name", Value::is_string),
    (MARKETPLACE, "/plugins/0/name", is_name),
    (MARKETPLACE, "/plugins/0/source", |source| source == "./packaging/claude-code"),
    (PLUGIN, "/name", is_name),
    (PLUGIN, "/mcpServers/phone-opus/command", |command| command == "phone-opus"),
    (BUNDLE, "/manifest_version", |version| version == "0.3"),
    (BUNDLE, "/name", is_name),
    (BUNDLE, "/version", Value::is_string),
    (BUNDLE, "/description", Value::is_string),
    (BUNDLE, "/author/name", Value::is_string),
    (BUNDLE, "/server/type", |kind| kind == "binary"),
    (BUNDLE, "/server/entry_point", |file| file == "server/phone-opus"),
    (BUNDLE, "/server/mcp_config/command", |command| command == "${__dirname}/server/phone-opus"),
    (BUNDLE, "/user_config/directory/type", |kind| kind == "directory"),
    (REGISTRY, "/$schema", Value::is_string),
    (REGISTRY, "/name", Value::is_string),
    // No longer, or the registry refuses it.
    (REGISTRY, "/description", |text| text.as_str().is_some_and(|text| text.len() <= 100)),
    (REGISTRY, "/version", Value::is_string),
    (REGISTRY, "/packages/0/registryType", |kind| kind == "mcpb"),
    (REGISTRY, "/packages/0/identifier", Value::is_string),
    (REGISTRY, "/packages/0/fileSha256", Value::is_string),
    (REGISTRY, "/packages/0/transport/type", |kind| kind == "stdio"),
];

fn is_name(value: &Value) -> bool {
    value == "phone-opus"
}

#[test]
fn the_formats_of_packages_have_what_they_demand() {
    for file in files().iter().filter(|file| file.ends_with(".json")) {
        assert!(DEMANDS.iter().any(|(of, ..)| of == file), "{file}: nothing says what it has to hold");
    }
    for (file, place, is_right) in DEMANDS {
        let found = parsed(file);
        assert!(found.pointer(place).is_some_and(is_right), "{file}: {place} is {:?}", found.pointer(place));
    }
}

/// The versions a text names: three numbers with dots between, and no fourth.
fn versions(text: &str) -> Vec<&str> {
    let words = text.split(|one: char| !one.is_ascii_digit() && one != '.').map(|word| word.trim_matches('.'));
    words.filter(|word| word.split('.').filter(|number| !number.is_empty()).count() == 3).collect()
}

#[test]
fn no_file_of_a_package_names_another_version_than_the_crate() {
    let own = env!("CARGO_PKG_VERSION");
    assert_eq!(versions("v0.1.0, 1.2 and 127.0.0.1; 10.20.30."), ["0.1.0", "10.20.30"]);
    for file in files() {
        let text = read(&file);
        let other: Vec<_> = versions(&text).into_iter().filter(|version| *version != own).collect();
        assert!(other.is_empty(), "{file} names {other:?}; Cargo.toml says {own}");
    }
    // Who installs a plugin from the repository sees the file as it is; the rest is filled in.
    assert_eq!(parsed(PLUGIN)["version"], own);
    for file in [BUNDLE, REGISTRY] {
        assert_eq!(parsed(file)["version"], "@VERSION@", "{file}");
    }
}

/// What stands between two marks, each time.
fn between<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(mark).skip(1).step_by(2)
}

/// The names of the tools, and of their arguments.
async fn tools(host: &mut TestClient) -> (BTreeSet<String>, BTreeSet<String>) {
    host.handshake("2025-11-25").await;
    let listed = host.request("tools/list", serde_json::json!({})).await;
    let listed = listed["result"]["tools"].as_array().expect("tools");
    let name = |tool: &Value| tool["name"].as_str().expect("a name").to_owned();
    let arguments = |tool: &Value| -> Vec<String> {
        tool["inputSchema"]["properties"].as_object().expect("arguments").keys().cloned().collect()
    };
    (listed.iter().map(name).collect(), listed.iter().flat_map(arguments).collect())
}

#[tokio::test]
async fn what_a_client_is_told_of_tools_is_so() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let (tools, arguments) = tools(&mut host).await;
    let skill = read(SKILL);
    let told: BTreeSet<&str> = between(&skill, "`").collect();
    assert!(told.contains("consult") && told.contains("consult_job"), "{told:?}");
    let unknown: Vec<_> = told.iter().filter(|word| !tools.contains(**word) && !arguments.contains(**word)).collect();
    assert!(unknown.is_empty(), "{SKILL} names neither tools nor arguments: {unknown:?}");

    let bundle = parsed(BUNDLE);
    let bundled = bundle["tools"].as_array().expect("tools").iter().map(|tool| tool["name"].as_str().expect("a name"));
    assert_eq!(bundled.map(str::to_owned).collect::<BTreeSet<_>>(), tools, "{BUNDLE}");
    rig.stop_and_check_invariants([host]).await;
}

/// The words in quotes of a line, single or double.
fn quoted(line: &str) -> Vec<&str> {
    let mark = if line.contains('"') { "\"" } else { "'" };
    between(line, mark).collect()
}

#[tokio::test]
async fn every_command_that_a_package_runs_is_one_of_the_programs() {
    let mut commands: BTreeSet<Vec<String>> = BTreeSet::new();
    let mut add = |words: &[&str]| commands.insert(words.iter().map(|word| (*word).to_owned()).collect());
    for (file, place) in [(PLUGIN, "/mcpServers/phone-opus/args"), (BUNDLE, "/server/mcp_config/args")] {
        let found = parsed(file);
        let words = found.pointer(place).and_then(Value::as_array).expect("arguments");
        add(&words.iter().map(|word| word.as_str().expect("a word")).collect::<Vec<_>>());
    }
    // `bin/"phone-opus", "man", man1` and `#{bin}/phone-opus consult --agent offline '…'`.
    let formula = read(FORMULA);
    for line in formula.lines() {
        if let Some((_, rest)) = line.split_once("bin/\"phone-opus\", ") {
            add(&quoted(rest));
        }
        if let Some((_, rest)) = line.split_once("#{bin}/phone-opus ") {
            let words = rest.split('\'').next().expect("words");
            add(&words.split_whitespace().collect::<Vec<_>>());
        }
    }
    // `run(self.program(), "man", man, …)`.
    let release = read(RELEASE);
    for (_, rest) in release.lines().filter_map(|line| line.split_once("run(self.program(), ")) {
        add(&quoted(rest)[..1]);
    }
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for known in [&["mcp", "serve"][..], &["man"], &["completions"], &["consult", "--agent", "offline"]] {
        assert!(commands.contains(&words(known)), "{known:?} is in no package: {commands:?}");
    }
    let rig = new_rig();
    for mut command in commands {
        command.push("--help".to_owned());
        let output = rig.run(&command.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    rig.stop_and_check_invariants([]).await;
}

#[test]
fn what_is_released_has_every_feature_and_the_licences() {
    let (release, formula, manifest) = (read(RELEASE), read(FORMULA), read("Cargo.toml"));
    assert!(release.contains("FEATURES = \"full\"") && formula.contains("features: \"full\""));
    let debian = manifest.split_once("[package.metadata.deb]").expect("the Debian package").1;
    assert!(debian.contains("features = [\"full\"]"), "{debian}");
    for licence in ["MIT", "Apache-2.0"] {
        assert!(env!("CARGO_PKG_LICENSE").contains(licence) && formula.contains(licence), "{licence}");
    }
    for file in [PLUGIN, BUNDLE] {
        assert_eq!(parsed(file)["license"], env!("CARGO_PKG_LICENSE"), "{file}");
    }
    // Where the Debian package looks is where the other packages have them too.
    for place in ["man/man1", "bash-completion/completions", "zsh/vendor-completions", "fish/vendor_completions.d"] {
        assert!(debian.contains(&format!("packaged/{place}/*\", \"usr/share/{place}/\"")), "{place}");
        assert!(release.replace("\" / \"", "/").contains(&format!("\"{place}")), "{place}");
    }
}

/// Runs the script of a release, in a directory of its own.
fn released(dir: &Path, words: &[&str]) -> Output {
    Command::new(root().join(RELEASE)).arg(dir).args(words).output().expect("the script runs")
}

/// Says where people look that a test has shown nothing.
fn skipped(why: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("SKIPPED: {why}\n").as_bytes());
}

/// The archives and what is written of them; whatever needs cargo or other tools is tried by `.ci/long packages`.
#[tokio::test]
async fn a_release_is_whole_and_the_server_in_its_bundle_serves() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skipped("python3 is not here, so no release was made");
    }
    let dir = tempfile::Builder::new().prefix("phone-opus-released-").tempdir().expect("a scratch directory");
    // Small, and the program all the same: what it is packed by does not look into it.
    let (rig, program) = (new_rig(), dir.path().join("program"));
    let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", rig.program().display());
    let made = Command::new("/bin/sh")
        .args(["-c", "printf %s \"$2\" > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(&program)
        .arg(script)
        .status();
    assert!(made.expect("a shell").success());
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let program = program.display().to_string();
    let words = [
        "--program",
        &program,
        "--target",
        "x86_64-unknown-linux-musl",
        "--only",
        "archive,bundle,registry,formula,checksums",
        "--downloads",
        "https://downloads.invalid",
        "--homepage",
        "https://home.invalid",
        "--registry-name",
        "invalid.home/phone-opus",
    ];
    fs::create_dir(&first).expect("a directory");
    let name = format!("phone-opus-{}", env!("CARGO_PKG_VERSION"));
    fs::write(first.join(format!("{name}.crate")), "a crate").expect("a file");
    for dir in [&first, &second] {
        let output = released(dir, &words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let skipped = String::from_utf8_lossy(&output.stderr).contains("SKIPPED: formula: there is no crate");
        assert_eq!(skipped, dir == &second, "what is missing is said");
    }
    let bundle = format!("{name}-x86_64-unknown-linux-musl.mcpb");
    let archive = format!("{name}-x86_64-unknown-linux-musl.tar.gz");
    for file in [&bundle, &archive] {
        let made = [&first, &second].map(|dir| fs::read(dir.join(file)).expect("an archive"));
        assert!(made[0] == made[1], "{file} differs from run to run");
    }
    let sums = fs::read_to_string(first.join("SHA256SUMS")).expect("checksums");
    let listed: Vec<_> = sums.lines().filter_map(|line| line.split_once("  ")).collect();
    let names: Vec<_> = listed.iter().map(|(_, name)| *name).collect();
    assert_eq!(names, [&bundle, &archive, &format!("{name}.crate"), "phone-opus.rb", "server.json"]);
    let sum = |file: &str| listed.iter().find(|(_, name)| *name == file).expect("a line").0;

    let registry = fs::read_to_string(first.join("server.json")).expect("the registry's file");
    let formula = fs::read_to_string(first.join("phone-opus.rb")).expect("the formula");
    assert!(!registry.contains('@') && !formula.contains('@'), "everything is filled in");
    let registry: Value = serde_json::from_str(&registry).expect("JSON");
    assert_eq!(registry["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(registry["packages"][0]["identifier"], format!("https://downloads.invalid/{bundle}"));
    assert_eq!(registry["packages"][0]["fileSha256"], sum(&bundle));
    assert!(formula.contains(&format!("sha256 \"{}\"", sum(&format!("{name}.crate")))), "{formula}");
    rig.stop_and_check_invariants([]).await;

    // As a desktop client has it.
    let unpacked = dir.path().join("unpacked");
    let unpack = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])";
    let done = Command::new("python3").args(["-c", unpack]).arg(first.join(&bundle)).arg(&unpacked).status();
    assert!(done.expect("python3").success());
    let manifest: Value =
        serde_json::from_slice(&fs::read(unpacked.join("manifest.json")).expect("a manifest")).expect("JSON");
    assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(manifest["compatibility"]["platforms"], serde_json::json!(["linux"]));
    let server = unpacked.join(manifest["server"]["entry_point"].as_str().expect("a file"));
    let runnable = Command::new("/bin/chmod").arg("755").arg(&server).status();
    assert!(runnable.expect("chmod").success());
    let config = manifest["server"]["mcp_config"].clone();
    let command =
        config["command"].as_str().expect("a command").replace("${__dirname}", &unpacked.display().to_string());
    assert_eq!(Path::new(&command), server);
    let mut rig = Rig::new(server).with("PHONE_OPUS_LOG", "warn");
    let chosen = rig.path("chosen");
    fs::create_dir(&chosen).expect("a directory");
    fs::write(chosen.join("kettle.md"), "The kettle boils the water.\n").expect("a file");
    for (variable, value) in config["env"].as_object().expect("an environment") {
        assert_eq!(value, "${user_config.directory}");
        rig.set(variable, chosen.display().to_string());
    }
    let mut host = rig.host();
    host.handshake("2025-11-25").await;
    let arguments = serde_json::json!({"agent": "offline", "cwd": chosen, "prompt": "what boils the water?"});
    let reply = host.call("consult", arguments).await.expect_success();
    assert!(reply["response"].as_str().is_some_and(|answer| answer.contains("kettle.md")), "{reply:?}");
    rig.stop_and_check_invariants([host]).await;
}
