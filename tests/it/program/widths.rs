//! Every command on terminals of several widths: nothing is wider than the terminal, and each help has an example.
//!
//! What is a file's text or a program's (a diff, a unit file, an object) stays as it is, and is looked at nowhere here.
//!
//! Laws: L11.

use std::collections::VecDeque;

use phone_opus::testkit::outputs::Keyboard;
use phone_opus::testkit::{Rig, tried_program};

/// Columns of the terminals.
const WIDTHS: [u16; 3] = [80, 100, 120];

fn new_rig() -> Rig {
    let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    rig.set("PHONE_OPUS_LOG", "error");
    rig.set("TERM", "dumb");
    rig
}

/// What a command leaves on a terminal of so many columns.
async fn on_columns(rig: &Rig, arguments: &[&str], columns: u16) -> String {
    let (_, seen) = rig.begin_on_a_terminal(arguments, Some((columns, 500)), Keyboard::Away).ended().await;
    seen.replace("\r\n", "\n")
}

fn invariant_it_fits(seen: &str, columns: u16, arguments: &[&str]) {
    for line in seen.lines() {
        assert!(line.chars().count() <= usize::from(columns), "{arguments:?} at {columns}: {line:?}");
    }
}

/// The commands that a help lists.
fn listed(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let first = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()));
    first.filter(|word| *word != "help").map(str::to_owned).collect()
}

#[tokio::test]
async fn every_help_fits_the_terminal_and_has_an_example() {
    let rig = new_rig();
    for columns in WIDTHS {
        let mut due = VecDeque::from([Vec::<String>::new()]);
        let mut seen = 0;
        while let Some(command) = due.pop_front() {
            let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
            let help = on_columns(&rig, &arguments, columns).await;
            invariant_it_fits(&help, columns, &arguments);
            let shown = ["Example:", "Examples:", "Add it to a client:", "Put it where the shell reads it:"];
            assert!(shown.iter().any(|title| help.contains(title)), "{arguments:?} has no example: {help}");
            due.extend(listed(&help).into_iter().map(|word| [command.clone(), vec![word]].concat()));
            seen += 1;
        }
        assert!(seen > 30, "{seen} commands");
    }
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn whatever_a_command_says_fits_the_terminal() {
    let rig = new_rig();
    let prompt = rig.answering("forty-two");
    let long = "x".repeat(30);
    let commands: &[&[&str]] = &[
        &["consult", "--agent", "offline", "where is the retry?"],
        &["consult", "--quiet", &prompt],
        &["consult", "--background", "--agent", "offline", "where is the retry?"],
        &["consult", "--agents", "offline,codex", "where is the retry?"],
        // What is refused.
        &["consult", "--agent", "cluade", "x"],
        &["consult", "--agents", "offline", "x"],
        &["consult", "--agent", "offline", "--session", &long, "x"],
        &["consult", "--diff", "--agent", "offline", "x"],
        &["consult", "--cwd", "/no/such/directory", "x"],
        &["consult", " "],
        &["consult"],
        &["jobs", "list"],
        &["jobs", "list", "--all"],
        &["jobs", "list", "--state", "done"],
        &["jobs", "show", "last"],
        &["jobs", "tail", "last"],
        &["jobs", "cancel", "last"],
        &["jobs", "show", "0000"],
        &["jobs", "show", "zzz"],
        &["jobs", "limits"],
        &["jobs", "prune"],
        &["status"],
        &["agents"],
        &["config", "show"],
        &["faults", "list"],
        &["install", "--client", "emacs"],
        &["uninstall", "--client", "claude", "--dry-run"],
        &["daemon", "status"],
        &["daemon", "stop"],
        &["daemon", "uninstall"],
        &["exec-server", "--listen", "x"],
        &["completions", "tcsh"],
        &["jbos"],
        &[],
    ];
    for columns in WIDTHS {
        for arguments in commands {
            let seen = on_columns(&rig, arguments, columns).await;
            assert!(!seen.trim().is_empty(), "{arguments:?} says nothing");
            invariant_it_fits(&seen, columns, arguments);
        }
    }
    rig.stop_and_check_invariants([]).await;
}
