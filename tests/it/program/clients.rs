//! `install` and `uninstall` with the real program: the files of each client on disk, whose they are and what leads to them,
//! the question before anything is written, and two of us at once.
//!
//! Laws: L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use phone_opus::testkit::rig::give_away;
use phone_opus::testkit::{Rig, tried_program};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A world whose program lies where versions are installed, and the directory it lies in.
fn new_rig() -> (Rig, TempDir) {
    let dir = tempfile::Builder::new().prefix("phone-opus-installed-").tempdir().expect("a scratch directory");
    let rig = Rig::new(program_in(dir.path())).with("PHONE_OPUS_LOG", "warn");
    (rig, dir)
}

pub(super) fn program_in(dir: &Path) -> PathBuf {
    let (built, program) = (tried_program(env!("CARGO_BIN_EXE_phone-opus")), dir.join("phone-opus"));
    let built = fs::canonicalize(built).expect("the program");
    fs::hard_link(&built, &program).or_else(|_| fs::copy(&built, &program).map(|_| ())).expect("a copy");
    program
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}\n{}", stdout(output), stderr(output));
}

fn parsed(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).expect("JSON and nothing else on stdout")
}

/// What is in another server's entry and is shown to nobody.
const SECRET: &str = "sk-of-another-server";

/// A client, its file below the home or the work directory of a rig, and the file's text before.
struct Case {
    client: &'static str,
    scope: &'static str,
    file: PathBuf,
    text: String,
}

/// The files of each client in both scopes, in directories that are there.
fn cases(rig: &mut Rig) -> Vec<Case> {
    let config = rig.path("config");
    rig.set("XDG_CONFIG_HOME", config.display().to_string());
    rig.set("CLAUDE_CONFIG_DIR", config.join("claude").display().to_string());
    let desktop = if cfg!(target_os = "macos") { rig.at_home("Library/Application Support") } else { config.clone() };
    let json = |key: &str| {
        format!(
            "{{\n  // ours\n  \"{key}\": {{\n    \"docs\": {{\"command\": \"docs\", \"env\": {{\"KEY\": \"{SECRET}\"}}}}\n  }},\n}}\n"
        )
    };
    let toml = format!("# ours\n[mcp_servers.docs]\ncommand = \"docs\"\nenv = {{ KEY = \"{SECRET}\" }}");
    let work = rig.work();
    let mut cases = Vec::new();
    let mut add = |client, scope, file: PathBuf, text: String| {
        fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        cases.push(Case { client, scope, file, text });
    };
    add("claude", "user", config.join("claude/.claude.json"), json("mcpServers"));
    add("claude", "project", work.join(".mcp.json"), json("mcpServers"));
    add("codex", "user", rig.at_home(".codex").join("config.toml"), toml.clone());
    add("codex", "project", work.join(".codex/config.toml"), toml);
    add("gemini", "user", rig.at_home(".gemini").join("settings.json"), json("mcpServers"));
    add("gemini", "project", work.join(".gemini/settings.json"), json("mcpServers"));
    add("cursor", "user", rig.at_home(".cursor").join("mcp.json"), json("mcpServers"));
    add("cursor", "project", work.join(".cursor/mcp.json"), json("mcpServers"));
    add("vscode", "user", desktop.join("Code/User/mcp.json"), json("servers"));
    add("vscode", "project", work.join(".vscode/mcp.json"), json("servers"));
    add("opencode", "user", config.join("opencode/opencode.json"), json("mcp"));
    add("opencode", "project", work.join("opencode.json"), json("mcp"));
    add("zed", "user", config.join("zed/settings.json"), json("context_servers"));
    add("zed", "project", work.join(".zed/settings.json"), json("context_servers"));
    add("windsurf", "user", rig.at_home(".codeium").join("windsurf/mcp_config.json"), json("mcpServers"));
    add("claude-desktop", "user", desktop.join("Claude/claude_desktop_config.json"), json("mcpServers"));
    cases
}

#[tokio::test]
async fn each_client_is_set_up_in_each_scope_and_put_back_byte_for_byte() {
    let (mut rig, _dir) = new_rig();
    let program = rig.program().display().to_string();
    for case in cases(&mut rig) {
        let Case { client, scope, file, text } = &case;
        let name = format!("{client}, {scope}");
        let words = |act: &'static str, more: &[&'static str]| -> Vec<String> {
            let words = [act, "--client", client, "--scope", scope];
            words.iter().chain(more).map(|word| (*word).to_owned()).collect()
        };
        let run = async |words: Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            rig.run(&words).await
        };
        let now = || fs::read_to_string(file).expect("the file");
        let mode = || fs::metadata(file).expect("the file").mode() & 0o7777;
        // A file that is not there is made, and goes again.
        code(&run(words("install", &["--yes"])).await, 0);
        assert!(now().contains(&program), "{name}: {}", now());
        assert_eq!(mode() & 0o077 == 0, *scope == "user", "{name}: a user's file is the user's alone");
        code(&run(words("uninstall", &["--yes"])).await, 0);
        assert!(!file.exists(), "{name}");

        fs::write(file, text).expect("written");
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).expect("set");
        let shown = run(words("install", &["--dry-run"])).await;
        code(&shown, 0);
        assert!(stdout(&shown).contains(&format!("\"{program}\"")), "{name}: {}", stdout(&shown));
        let asked = run(words("install", &[])).await;
        code(&asked, 2);
        assert!(stderr(&asked).contains("--yes") && stdout(&asked).contains(&program), "{name}: {}", stderr(&asked));
        let seen = parsed(&run(words("install", &["--json", "--dry-run"])).await);
        assert_eq!(
            (&seen["status"], &seen["client"], &seen["scope"]),
            (&json!("would_write"), &json!(client), &json!(scope))
        );
        let unasked = run(words("install", &["--json"])).await;
        code(&unasked, 2);
        let needs = parsed(&unasked);
        assert!(needs["status"] == "needs_yes" && needs["diff"] == seen["diff"], "{name}: {needs}");
        assert_eq!(now(), *text, "{name}: nothing was written yet");

        let written = run(words("install", &["--yes", "--json"])).await;
        code(&written, 0);
        let written = parsed(&written);
        assert_eq!(written["status"], "written", "{name}");
        assert!(!written.to_string().contains(SECRET) && !stdout(&shown).contains(SECRET), "{name}: {written}");
        assert!(now().contains("ours") && now().contains(SECRET) && now().contains(&program), "{name}: {}", now());
        assert_eq!(mode(), 0o640, "{name}");
        let changed = now();
        let again = run(words("install", &["--yes", "--json"])).await;
        assert_eq!(
            (parsed(&again)["status"].as_str(), again.status.code()),
            (Some("nothing_to_do"), Some(0)),
            "{name}"
        );
        assert_eq!(now(), changed, "{name}: twice is once");
        code(&run(words("uninstall", &["--dry-run"])).await, 0);
        code(&run(words("uninstall", &[])).await, 2);
        assert_eq!(now(), changed, "{name}");
        code(&run(words("uninstall", &["--yes"])).await, 0);
        assert_eq!(now(), *text, "{name}");
        let again = run(words("uninstall", &["--yes", "--json"])).await;
        assert_eq!(
            (parsed(&again)["status"].as_str(), again.status.code()),
            (Some("nothing_to_do"), Some(0)),
            "{name}"
        );
        let others = fs::read_dir(file.parent().expect("a directory")).expect("listed");
        let left = others
            .filter(|one| one.as_ref().is_ok_and(|one| one.file_name().to_string_lossy().contains("phone-opus-")));
        assert_eq!(left.count(), 0, "{name}: nothing of ours lies beside it");
    }
    let remembered = fs::read_dir(rig.state_dir().root().join("installed")).expect("the records").count();
    assert_eq!(remembered, 0, "what is taken back is forgotten");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_daemon_is_named_where_it_is_asked_for_and_what_was_edited_stays() {
    let (mut rig, _dir) = new_rig();
    let file = rig.at_home(".cursor").join("mcp.json");
    code(&rig.run(&["install", "--client", "cursor", "--connect", "--yes"]).await, 0);
    let entry = || {
        let read: Value = serde_json::from_str(&fs::read_to_string(&file).expect("the file")).expect("JSON");
        read["mcpServers"]["phone-opus"].clone()
    };
    assert_eq!(entry()["args"], json!(["mcp", "connect"]));
    code(&rig.run(&["install", "--client", "cursor", "--yes"]).await, 0);
    assert_eq!(entry()["args"], json!(["mcp", "serve"]));
    let edited = fs::read_to_string(&file)
        .expect("the file")
        .replace("\"serve\"]", "\"serve\"],\n      \"env\": {\"A\": \"b\"}");
    fs::write(&file, &edited).expect("written");
    let kept = rig.run(&["uninstall", "--client", "cursor", "--yes"]).await;
    code(&kept, 1);
    assert!(
        stderr(&kept).contains("mcpServers.phone-opus.env") && stderr(&kept).contains("--force"),
        "{}",
        stderr(&kept)
    );
    assert_eq!(fs::read_to_string(&file).expect("the file"), edited);
    code(&rig.run(&["uninstall", "--client", "cursor", "--yes", "--force"]).await, 0);
    assert!(!file.exists(), "it was made by the install");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_file_that_is_not_the_users_own_plain_one_is_left_alone_with_a_reason() {
    let (mut rig, dir) = new_rig();
    let cursor = rig.at_home(".cursor");
    let file = cursor.join("mcp.json");
    let elsewhere = rig.path("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    type Make = fn(&Path, &Path) -> bool;
    let fifo: Make = |file, _| nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).is_ok();
    let table: [(&str, Make, &str); 9] = [
        ("a link that leads nowhere", |file, other| symlink(other.join("none"), file).is_ok(), "leads nowhere"),
        ("a directory", |file, _| fs::create_dir(file).is_ok(), "no file"),
        ("a pipe", fifo, "no file"),
        (
            "a file with two names",
            |file, other| fs::write(file, "{}").is_ok() && fs::hard_link(file, other.join("second")).is_ok(),
            "another name",
        ),
        (
            "a file of another user",
            |file, _| fs::write(file, "{}").is_ok() && give_away(file, 65534, 65534),
            "another user",
        ),
        (
            "a file that is too large",
            |file, _| fs::write(file, format!("{{}}{}", " ".repeat(4 * 1024 * 1024))).is_ok(),
            "more than 4194304 bytes",
        ),
        ("a file that is no text", |file, _| fs::write(file, b"{\"a\": \"\xff\"}").is_ok(), "from byte 7 on"),
        (
            "a broken file",
            |file, _| fs::write(file, "{\n  \"a\": \"sk-of-another-server\"\n  1\n}\n").is_ok(),
            "line 2, column ",
        ),
        (
            "another's entry",
            |file, _| {
                fs::write(file, "{\"mcpServers\": {\"phone-opus\": {\"url\": \"sk-of-another-server\"}}}").is_ok()
            },
            "--force",
        ),
    ];
    for (what, make, said) in table {
        if !make(&file, &elsewhere) {
            eprintln!("skipped: {what}: this user cannot make one");
            phone_opus::testkit::places::remove(&file);
            continue;
        }
        let before =
            fs::symlink_metadata(&file).map(|seen| (seen.ino(), seen.size(), seen.uid())).expect("it is there");
        for more in [&["--yes"][..], &["--dry-run"], &["--yes", "--json"]] {
            let words: Vec<&str> = ["install", "--client", "cursor"].iter().chain(more).copied().collect();
            let output = rig.run(&words).await;
            code(&output, 1);
            assert!(stderr(&output).contains(said), "{what}: {}", stderr(&output));
            let shown = stdout(&output) + &stderr(&output);
            assert!(!shown.contains(SECRET), "{what}: {shown}");
            if more.contains(&"--json") {
                assert_eq!(parsed(&output)["status"], "refused", "{what}");
                assert_eq!(
                    parsed(&output)["at"]["line"].is_u64(),
                    what == "a broken file" || what == "another's entry"
                );
            }
        }
        let after = fs::symlink_metadata(&file).map(|seen| (seen.ino(), seen.size(), seen.uid())).expect("it is there");
        assert_eq!(before, after, "{what}");
        let others = fs::read_dir(&cursor).expect("listed").count();
        assert_eq!(others, 1, "{what}: nothing lies beside it");
        phone_opus::testkit::places::remove(&file);
        fs::remove_dir_all(&elsewhere).and_then(|()| fs::create_dir(&elsewhere)).expect("emptied");
    }

    // A link of the user's is followed, and what it leads to is replaced where that lies.
    let kept = elsewhere.join("dotfiles.json");
    fs::write(&kept, "{}\n").expect("written");
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o604)).expect("set");
    symlink(&kept, &file).expect("a link");
    code(&rig.run(&["install", "--client", "cursor", "--yes"]).await, 0);
    assert!(fs::symlink_metadata(&file).expect("there").is_symlink(), "still a link");
    assert!(fs::read_to_string(&kept).expect("read").contains("phone-opus"));
    assert_eq!(fs::metadata(&kept).expect("there").mode() & 0o7777, 0o604);
    code(&rig.run(&["uninstall", "--client", "cursor", "--yes"]).await, 0);
    assert_eq!(fs::read_to_string(&kept).expect("read"), "{}\n");

    // A program in a build directory is named to nobody, and nor is one that a link there leads to.
    let build = dir.path().join("target");
    fs::create_dir(&build).expect("a directory");
    let built = program_in(&build);
    let link = dir.path().join("linked");
    symlink(&built, &link).expect("a link");
    for program in [built, link] {
        let mut command = std::process::Command::new(&program);
        command.args(["install", "--client", "cursor", "--yes"]).env_clear().env("HOME", rig.path("home"));
        let output = command.env("PHONE_OPUS_STATE_DIR", rig.path("state")).output().expect("it runs");
        code(&output, 2);
        assert!(stderr(&output).contains("build directory"), "{}", stderr(&output));
    }
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn of_a_project_nothing_outside_of_it_is_touched() {
    let (rig, _dir) = new_rig();
    let (work, out) = (rig.work(), rig.path("out"));
    fs::create_dir_all(&out).expect("a directory");
    fs::create_dir_all(work.join("inside")).expect("a directory");
    let install = ["install", "--client", "cursor", "--scope", "project", "--yes"];

    symlink(&out, work.join(".cursor")).expect("a link");
    let output = rig.run(&install).await;
    code(&output, 1);
    assert!(stderr(&output).contains("out of the project"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(&out).expect("listed").count(), 0);
    fs::remove_file(work.join(".cursor")).expect("removed");

    fs::create_dir(work.join(".cursor")).expect("a directory");
    fs::write(out.join("mcp.json"), "{}").expect("written");
    symlink(out.join("mcp.json"), work.join(".cursor/mcp.json")).expect("a link");
    code(&rig.run(&install).await, 1);
    assert_eq!(fs::read_to_string(out.join("mcp.json")).expect("read"), "{}");
    fs::remove_dir_all(work.join(".cursor")).expect("removed");

    // A link that stays inside is followed.
    symlink("inside", work.join(".cursor")).expect("a link");
    code(&rig.run(&install).await, 0);
    assert!(fs::read_to_string(work.join("inside/mcp.json")).expect("read").contains("phone-opus"));
    code(&rig.run(&["uninstall", "--client", "cursor", "--scope", "project", "--yes"]).await, 0);
    assert!(!work.join("inside/mcp.json").exists());

    for client in ["windsurf", "claude-desktop"] {
        let output = rig.run(&["install", "--client", client, "--scope", "project", "--yes"]).await;
        code(&output, 2);
        assert!(stderr(&output).contains("no file of a project"), "{}", stderr(&output));
    }
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn two_at_once_leave_a_whole_file_with_the_entry_in_it() {
    let (mut rig, _dir) = new_rig();
    let file = rig.at_home(".cursor").join("mcp.json");
    let other = rig.path("other-state").display().to_string();
    for round in 0..6 {
        let old = "{\n  \"mcpServers\": {\n    \"docs\": {} // ours\n  }\n}\n";
        fs::write(&file, old).expect("written");
        let start = |words: &[&str]| {
            let mut command = rig.command(words);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("it runs")
        };
        let words = ["install", "--client", "cursor", "--yes"];
        let elsewhere = ["install", "--client", "cursor", "--connect", "--yes", "--state-dir", &other];
        let children = [start(&words), start(&elsewhere), start(&words), start(&elsewhere)];
        let mut done = 0;
        for child in children {
            let output = child.wait_with_output().await.expect("it ends");
            match output.status.code() {
                Some(0) => done += 1,
                Some(1) => assert!(stderr(&output).contains("changed it meanwhile"), "{}", stderr(&output)),
                other => panic!("{other:?}: {}", stderr(&output)),
            }
        }
        assert!(done >= 1, "round {round}: somebody has written");
        let now = fs::read_to_string(&file).expect("the file");
        assert!(now.contains("\"docs\": {}, // ours\n") && now.matches("\"phone-opus\": {").count() == 1, "{now}");
        assert!(now.ends_with("\n  }\n}\n"), "{now}");
        assert_eq!(fs::read_dir(file.parent().expect("a directory")).expect("listed").count(), 1);
    }
    rig.stop_and_check_invariants([]).await;
}

/// Runs a command at a terminal, and types when it asks; what was on the screen, and the exit code.
pub(super) async fn at_the_keyboard(
    rig: &Rig,
    words: &[&str],
    meanwhile: impl FnOnce(),
    typed: &str,
) -> (String, Option<i32>) {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).expect("a terminal");
    rustix::pty::grantpt(&master).expect("granted");
    rustix::pty::unlockpt(&master).expect("unlocked");
    let name = rustix::pty::ptsname(&master, Vec::new()).expect("its name");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).expect("the other side");
    let copy = || slave.try_clone().expect("the same terminal");
    let mut command = rig.command(words);
    command.stdin(copy()).stdout(copy()).stderr(copy());
    let mut child = command.spawn().expect("it runs");
    drop((command, slave));
    let mut master = fs::File::from(master);
    let mut typing = master.try_clone().expect("the same terminal");
    let (asked, asks) = tokio::sync::oneshot::channel();
    let reading = tokio::task::spawn_blocking(move || {
        let (mut seen, mut part, mut asked) = (Vec::new(), [0; 4096], Some(asked));
        while let Ok(read @ 1..) = master.read(&mut part) {
            seen.extend_from_slice(&part[..read]);
            if String::from_utf8_lossy(&seen).contains("[y/N]")
                && let Some(asked) = asked.take()
            {
                let _ = asked.send(());
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    });
    asks.await.expect("it asks");
    meanwhile();
    typing.write_all(typed.as_bytes()).expect("typed");
    let code = child.wait().await.expect("it ends").code();
    drop(typing);
    (reading.await.expect("it is read"), code)
}

#[tokio::test]
async fn at_a_terminal_it_asks_and_what_was_changed_since_is_not_written_over() {
    let (mut rig, _dir) = new_rig();
    let file = rig.at_home(".cursor").join("mcp.json");
    let old = "{\n  \"mcpServers\": {}\n}\n";
    let install = ["install", "--client", "cursor"];
    for (typed, code, writes) in [
        ("n\n", 3, false),
        ("\n", 3, false),
        ("\u{4}", 3, false),
        ("nonsense\n", 3, false),
        ("y\n", 0, true),
        ("YES\n", 0, true),
    ] {
        fs::write(&file, old).expect("written");
        let (seen, ended) = at_the_keyboard(&rig, &install, || (), typed).await;
        assert_eq!(ended, Some(code), "{typed:?}: {seen}");
        assert!(seen.contains("+") && seen.contains("\"phone-opus\": {"), "{typed:?}: {seen}");
        let now = fs::read_to_string(&file).expect("the file");
        assert_eq!(now != old, writes, "{typed:?}: {now}");
    }
    fs::write(&file, old).expect("written");
    let newer = "{\n  \"mcpServers\": {\"docs\": {}}\n}\n";
    let (seen, ended) = at_the_keyboard(&rig, &install, || fs::write(&file, newer).expect("written"), "y\n").await;
    assert!(ended == Some(1) && seen.contains("changed it meanwhile"), "{ended:?}: {seen}");
    assert_eq!(fs::read_to_string(&file).expect("the file"), newer);
    // Also a file that has come, and one that has gone.
    fs::remove_file(&file).expect("removed");
    let (seen, ended) = at_the_keyboard(&rig, &install, || fs::write(&file, newer).expect("written"), "y\n").await;
    assert!(ended == Some(1) && fs::read_to_string(&file).is_ok_and(|now| now == newer), "{ended:?}: {seen}");
    let (seen, ended) = at_the_keyboard(&rig, &install, || fs::remove_file(&file).expect("removed"), "y\n").await;
    assert!(ended == Some(1) && !file.exists(), "{ended:?}: {seen}");
    rig.stop_and_check_invariants([]).await;
}
