//! What each source may say, what is refused and in which words, and the page that tells of it.

use std::path::PathBuf;
use std::time::Duration;

use super::clients::ClientSettings;
use super::*;
use crate::agents::ExtraUsage;
use crate::jobs::Billing;

fn toml(text: &str) -> Result<Settings, ConfigError> {
    Settings::from_toml(Path::new("config.toml"), text)
}

#[test]
fn stronger_sources_win_and_the_rest_stays() {
    let user = toml("max_running = 2\nbilling = \"api_key\"\n").expect("it is good");
    let environment = Settings::from_environment(|name| match name {
        "PHONE_OPUS_MAX_RUNNING" => Some("5".into()),
        "PHONE_OPUS_CLAUDE_BIN" => Some("/x/claude".into()),
        _ => None,
    })
    .expect("it is good");
    let config = Config::from_sources(&[("file".into(), user), ("environment".into(), environment)]).expect("good");
    assert_eq!(config.max_running, 5);
    assert_eq!(config.billing, Billing::ApiKey);
    assert_eq!(config.claude_bin, Some(PathBuf::from("/x/claude")));
    assert_eq!(config.timeout, Config::default().timeout);
}

#[test]
fn a_bad_value_names_its_place_and_what_is_accepted() {
    let cases = [
        (toml("max_runing = 2"), "did you mean max_running?"),
        (toml("max_running = \"two\""), "line 1"),
        (toml("billing = \"free\""), "subscription"),
        (toml("rollout = \"on\""), "on_request"),
        (
            Config::from_sources(&[("file".into(), toml("workspaces = [\"src\"]").expect("it is a list"))])
                .map(|_| Settings::default()),
            "file: workspaces holds src; accepted: absolute directories",
        ),
        (
            Settings::from_environment(|name| (name == "PHONE_OPUS_ROLLOUT").then(|| "on-request".into())),
            "PHONE_OPUS_ROLLOUT: \"on-request\" (did you mean on_request?); accepted: auto, on_request, off",
        ),
        (toml("extra_usage = \"sometimes\""), "stop"),
        (toml("fleets = \"x\""), "did you mean fleet?"),
        (toml("fleet_placement = \"clones\""), "clone"),
        (
            Settings::from_environment(|name| (name == "PHONE_OPUS_FLEET_PLACEMENT").then(|| "flet".into())),
            "PHONE_OPUS_FLEET_PLACEMENT: \"flet\" (did you mean fleet?); accepted: local, fleet, clone",
        ),
        (
            Config::from_sources(&[("file".into(), toml("fleet = \"mysql://db/x\"").expect("a text"))])
                .map(|_| Settings::default()),
            "file: fleet begins with mysql:, which is no database of a fleet (did you mean postgres://?)",
        ),
        (
            Config::from_sources(&[("file".into(), toml("fleet_labels = [\"a b\"]").expect("a list"))])
                .map(|_| Settings::default()),
            "file: fleet_labels holds \"a b\", which is no word; accepted: up to 512 words",
        ),
        (
            Config::from_sources(&[("file".into(), toml("otlp = \"http://collector.example\"").expect("a text"))])
                .map(|_| Settings::default()),
            "file: otlp leads to another machine (collector.example) without encryption; write https://",
        ),
        (toml("agent_env = \"X\""), "line 1"),
        (
            Settings::from_environment(|name| (name == "PHONE_OPUS_BILLING").then(|| "cash".into())),
            "PHONE_OPUS_BILLING: \"cash\"; accepted: subscription, api_key",
        ),
        (
            Settings::from_environment(|name| (name == "PHONE_OPUS_STALL_S").then(|| "soon".into())),
            "\"soon\" is not a whole number",
        ),
    ];
    for (got, want) in cases {
        let error = got.expect_err(want).to_string();
        assert!(error.contains(want), "{want}\n in {error}");
    }
    let settings = Settings { max_running: Some(0), ..Settings::default() };
    let error = Config::from_sources(&[("--max-running".into(), settings)]).expect_err("zero is no limit");
    assert_eq!(error.to_string(), "--max-running: max_running is 0; accepted: 1 to 64");
}

#[test]
fn variables_for_agents_are_the_users_to_name_and_what_pays_is_refused_with_the_reason() {
    let file = toml("agent_env = [\"NODE_OPTIONS\", \"CI\"]\n").expect("it is good");
    let variable = |value: &'static str| {
        Settings::from_environment(move |name| (name == "PHONE_OPUS_AGENT_ENV").then(|| value.into())).expect("good")
    };
    let sources = [("file".to_owned(), file), ("environment".to_owned(), variable("A_B, C"))];
    assert_eq!(Config::from_sources(&sources[..1]).expect("good").agent_env, ["NODE_OPTIONS", "CI"]);
    assert_eq!(Config::from_sources(&sources).expect("good").agent_env, ["A_B", "C"]);
    for (names, why) in [
        ("ANTHROPIC_API_KEY", "agent_env: ANTHROPIC_API_KEY can spend money"),
        ("CI,AWS_PROFILE", "billing = \"api_key\""),
        ("PHONE_OPUS_FAULTS", "server's own"),
        ("CLAUDECODE", "session"),
        ("A=B", "no name of a variable"),
    ] {
        let wrong = Config::from_sources(&[("the environment".into(), variable(names))]).expect_err(names).to_string();
        assert!(wrong.starts_with("the environment: ") && wrong.contains(why), "{wrong}");
    }
}

#[test]
fn a_clients_table_is_laid_key_by_key_and_checked_like_every_other_value() {
    let user = toml("[clients.x]\nwait_s = 20\nresponse_chars = 5000\n").expect("it is good");
    let other = toml("[clients.x]\nwait_s = 10\n[clients.\"a b\"]\nprogress_s = 1\n").expect("it is good");
    let config = Config::from_sources(&[("user".into(), user), ("other".into(), other)]).expect("good");
    let x = ClientSettings { wait_s: Some(10), progress_s: None, response_chars: Some(5000) };
    assert_eq!((config.clients.get("x"), config.clients.len()), (Some(&x), 2));
    let wrong = toml("[clients.x]\nwait = 20\n").expect_err("no such key").to_string();
    assert!(wrong.contains("unknown field `wait`"), "{wrong}");
    let settings = toml("[clients.x]\nwait_s = 0\n").expect("a number");
    let wrong = Config::from_sources(&[("file".into(), settings)]).expect_err("zero is no wait").to_string();
    assert_eq!(wrong, "file: clients.x.wait_s is 0; accepted: 1 to 3600");
}

fn with_project(user: &str, project: &[u8]) -> Config {
    let user = toml(user).expect("it is good");
    let config = Config::from_sources(&[("user".into(), user)]).expect("good");
    config.lowered(Path::new("/p/.phone-opus.toml"), Ok(Some(project.to_vec())))
}

#[test]
fn a_project_lowers_limits_and_raises_none() {
    let seconds = Duration::from_secs;
    let lower = with_project("timeout_s = 50\n", b"timeout_s = 7\nstall_s = 20\nwait_s = 3\nresponse_chars = 2000\n");
    assert_eq!((lower.timeout, lower.stall, &lower.left_out), (seconds(7), seconds(20), &None));
    assert_eq!((lower.most_wait, lower.most_response_chars), (Some(seconds(3)), Some(2000)));
    let higher = with_project("timeout_s = 5\nstall_s = 10\n", b"timeout_s = 86400\nstall_s = 86400\n");
    assert_eq!((higher.timeout, higher.stall, &higher.left_out), (seconds(5), seconds(10), &None));
    let none = with_project("timeout_s = 5\n", b"# nothing\n");
    assert_eq!((none.timeout, none.left_out), (seconds(5), None));
}

#[test]
fn a_projects_file_that_cannot_be_used_is_left_out_whole_and_never_quoted() {
    let cases: [(&[u8], &str); 14] = [
        (b"[agents.SECRET]\nexec = \"unix:/SECRET\"\n", "sets agents, which may not be set by a project's file"),
        (b"x", "is no TOML (line 1)"),
        (b"timeout_s = 5\naws_secret_access_key = wJalr/SECRET\n", "is no TOML (line 2)"),
        (b"timeout_s = \"SECRET\"", "sets timeout_s to what is no limit"),
        (b"timeout_s = 0", "sets timeout_s to what is no limit"),
        (b"timeout_s = -1", "sets timeout_s to what is no limit"),
        (b"timeout_s = 5\nSECRET = 1", "sets something that is no limit"),
        (b"\xff = 1", "is not UTF-8"),
        (b"claude_bin = \"/bin/SECRET\"", "sets claude_bin, which may not be set by a project's file"),
        (b"billing = \"api_key\"", "PHONE_OPUS_BILLING"),
        (b"workspaces = [\"/\"]", "PHONE_OPUS_WORKSPACES"),
        (b"agent = \"offline\"", "PHONE_OPUS_AGENT"),
        (b"max_running = 1", "sets max_running"),
        (b"[clients.SECRET]\nwait_s = 5\n", "sets clients"),
    ];
    for (text, want) in cases {
        let config = with_project("timeout_s = 50\n", text);
        let left_out = config.left_out.expect(want);
        assert!(left_out.why.contains(want) && !left_out.why.contains("SECRET"), "{want}: {left_out:?}");
        assert_eq!((config.timeout, left_out.place.as_str()), (Duration::from_secs(50), "/p/.phone-opus.toml"));
    }
}

/// The page of keys, from its head to the line after it.
fn table() -> String {
    let mut table = "| key | default | accepted | what |\n| --- | --- | --- | --- |\n".to_owned();
    for key in Key::ALL {
        // A project's file may lower it; a table is written with a name of its own.
        let name = match (key.name, key.may_be_lowered()) {
            ("clients" | "agents", _) => format!("`{}.NAME`", key.name),
            (name, true) => format!("`{name}` *"),
            (name, false) => format!("`{name}`"),
        };
        table.push_str(&format!("| {name} | {} | {} | {} |\n", key.default(), key.accepted(), key.what));
    }
    table
}

/// `PHONE_OPUS_ACCEPT=1 cargo test --lib the_page_of_keys` writes the table into the page.
#[test]
fn the_page_of_keys_is_what_the_table_says_and_its_example_can_be_used() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(&file).expect("the page");
    let (before, rest) = page.split_once("| key | default |").expect("a table");
    let (_, after) = rest.split_once("\n\n").expect("something after it");
    let wanted = format!("{before}{}\n{after}", table());
    if std::env::var_os("PHONE_OPUS_ACCEPT").is_some() {
        std::fs::write(&file, &wanted).expect("written");
    }
    for (page, wanted) in page.lines().zip(wanted.lines()) {
        assert_eq!(page, wanted, "docs/configuration.md; the head of this test says how it is written");
    }
    assert_eq!(page, wanted);
    let example = page.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```")).expect("an example").0;
    let settings = toml(example).expect("it can be read");
    Config::from_sources(&[("the example".into(), settings)]).expect("it can be used");
}

/// A value of each key that is accepted: as a file and as a variable has it.
fn accepted(key: &Key) -> (String, String) {
    let word = |word: &str| (format!("{word:?}"), word.to_owned());
    match key.name {
        "billing" => word("api_key"),
        "extra_usage" => word("stop"),
        "isolation" => word("process"),
        "rollout" => word("on_request"),
        "agent" => word("offline"),
        name if name.ends_with("_bin") => word("/x/program"),
        "agent_env" => ("[\"CI\", \"A_B\"]".to_owned(), "CI, A_B".to_owned()),
        "workspaces" => ("[\"/a\", \"/b\"]".to_owned(), "/a:/b".to_owned()),
        "fleet" => word("postgres://ada@db.example/fleet"),
        "fleet_accept" => ("[\"ada\", \"g h\"]".to_owned(), "ada, g h".to_owned()),
        "fleet_labels" => ("[\"gpu\", \"big\"]".to_owned(), "gpu big".to_owned()),
        "fleet_placement" => word("fleet"),
        "fleet_clone" => (
            "[\"https://git.example/team/*\", \"git@git.example:a\"]".to_owned(),
            "https://git.example/team/*, git@git.example:a".to_owned(),
        ),
        "fleet_clone_credentials" => ("[\"store\", \"gh-x\"]".to_owned(), "store gh-x".to_owned()),
        "otlp" => word("https://collector.example"),
        "clients" => ("{ x = { wait_s = 9 } }".to_owned(), String::new()),
        "agents" => {
            let site = "{ agent = \"claude\", exec = \"unix:/x\", workspaces = [\"/w\"] }";
            (format!("{{ x = {site} }}"), String::new())
        }
        _ => {
            let number = key.least().expect("the others are numbers") + 1;
            (number.to_string(), format!(" {number} "))
        }
    }
}

#[test]
fn each_key_is_read_the_same_from_a_file_and_from_its_variable_and_changes_one_field() {
    let config = |settings| Config::from_sources(&[("it".into(), settings)]).expect("accepted");
    let fields = |config: &Config| serde_json::to_value(config).expect("a configuration can be written down");
    let unset = fields(&Config::default());
    for key in Key::ALL {
        let (in_file, in_variable) = accepted(key);
        let file = config(toml(&format!("{} = {in_file}\n", key.name)).expect(key.name));
        let changed = fields(&file);
        let changed =
            changed.as_object().expect("fields").iter().filter(|(name, value)| unset[name.as_str()] != **value);
        assert_eq!(changed.count(), 1, "{}", key.name);
        if !["clients", "agents"].contains(&key.name) {
            let variable =
                Settings::from_environment(|name| (name == key.variable()).then(|| in_variable.clone().into()));
            assert_eq!(config(variable.expect(key.name)), file, "{}", key.name);
        }
        let back: Config = serde_json::from_value(fields(&file)).expect("and read back");
        assert_eq!(back, file, "{}", key.name);
    }
}

#[test]
fn the_bounds_of_each_number_are_accepted_and_what_is_beyond_them_is_not() {
    for key in Key::ALL {
        let (Some(least), Some(most)) = (key.least(), key.most()) else { continue };
        let read = |number: u64| {
            let settings =
                Settings::from_environment(|name| (name == key.variable()).then(|| number.to_string().into()));
            Config::from_sources(&[("the environment".into(), settings.expect("a number"))])
        };
        for number in [least, most] {
            read(number).expect(key.name);
        }
        for number in [least.checked_sub(1), Some(most + 1)].into_iter().flatten() {
            let wrong = read(number).expect_err(key.name).to_string();
            let name = key.name;
            assert_eq!(wrong, format!("the environment: {name} is {number}; accepted: {least} to {most}"));
        }
    }
}

#[test]
fn each_word_is_the_same_in_a_file_in_a_variable_and_in_what_is_told() {
    fn same<T: Words + Serialize + std::fmt::Debug>() {
        for (word, choice, _) in T::WORDS {
            assert_eq!(serde_json::to_value(choice).expect("a word"), *word);
            assert_eq!(T::of_word(word).expect("known"), *choice);
        }
        assert!(T::of_word("").expect_err("no word").contains("accepted: "));
    }
    same::<Billing>();
    same::<ExtraUsage>();
    same::<WorkerIsolation>();
    same::<RolloutMode>();
    same::<crate::fleet::Placement>();
}

#[test]
fn the_help_of_a_flag_names_its_variable_and_its_default() {
    assert_eq!(
        Key::max_running.help(),
        "Agents at once, over all servers of a state directory [env: PHONE_OPUS_MAX_RUNNING] [default: 3]"
    );
    for key in Key::ALL {
        assert!(!key.help().contains('`') && key.help().contains(&key.variable()), "{}", key.help());
    }
}
