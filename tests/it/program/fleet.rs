//! `fleet` and what `doctor` says of a fleet's database, with the real program and a PostgreSQL of the test's own.
//!
//! Laws: L7, L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::process::Output;

use phone_opus::internals::base::ids::HostId;
use phone_opus::internals::fleet::postgres::PgFleet;
use phone_opus::internals::fleet::{Fleet as _, Labels, Renewal};
use phone_opus::testkit::{Rig, tried_program};
use serde_json::{Value, json};

use crate::private_postgres::PrivateServer;

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_LOG", "error").with("NO_COLOR", "1")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn parsed(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else on stdout")
}

#[tokio::test]
async fn without_a_fleet_or_its_database_the_commands_say_what_to_do_and_show_no_password() {
    let mut rig = new_rig();
    for command in [&["fleet", "status"][..], &["fleet", "hosts"], &["fleet", "drain", "box"], &["fleet", "caps"]] {
        let output = rig.run(command).await;
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", said(&output));
        assert!(said(&output).contains("no fleet is configured") && said(&output).contains("PHONE_OPUS_FLEET"));
    }
    let output = rig.run(&["fleet", "caps", "set", "flet=3", "fleet=many", "fleet=2"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("did you mean fleet?") && said(&output).contains("\"many\""), "{}", said(&output));
    rig.set("PHONE_OPUS_FLEET", "postgres://ada:SECRET@%2Fnowhere/fleet");
    let output = rig.run(&["fleet", "status"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("postgres://ada@%2Fnowhere/fleet: failed to use the fleet's queue"),
        "{}",
        said(&output)
    );
    let doctor = rig.run(&["doctor", "--json"]).await;
    let checks = parsed(&doctor, 1)["checks"].as_array().expect("checks").clone();
    let fleet: Vec<&Value> = checks.iter().filter(|check| check["check"] == "fleet").collect();
    assert!(fleet.len() == 1 && fleet[0]["ok"] == false, "{fleet:?}");
    assert!(!said(&output).contains("SECRET") && !said(&doctor).contains("SECRET"));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_fleet_is_shown_drained_capped_and_looked_at() {
    let Some(server) = PrivateServer::own() else { return };
    let direct = server.database().await;
    let database = direct.rsplit('=').next().expect("a name");
    let socket = server.dir().display().to_string().replace('/', "%2F");
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_FLEET", format!("postgres://fleet@{socket}/{database}"));
    // The first command makes the tables.
    let status = parsed(&rig.run(&["fleet", "status", "--json"]).await, 0);
    assert_eq!((&status["hosts"], &status["jobs"]["queued"]), (&json!([]), &json!(0)));
    let fleet = PgFleet::open(&direct).await.expect("opened");
    let labels = Labels::read(r#"{"agents":{"claude":{}},"slots":4,"build":"0.1.0"}"#).expect("labels");
    let host = HostId::random();
    let renewal = Renewal { host, name: "box".into(), state_id: "s".into(), labels, running: Vec::new() };
    let _ = fleet.renew(&renewal).await.expect("renewed");

    let hosts = rig.run(&["fleet", "hosts"]).await;
    assert!(said(&hosts).starts_with("box\tlives\t0 of 4\t"), "{}", said(&hosts));
    let drained = parsed(&rig.run(&["fleet", "drain", "box", "--json"]).await, 0);
    assert_eq!((&drained["hosts"], &drained["drained"]), (&json!([host]), &json!(true)));
    assert!(fleet.renew(&renewal).await.expect("renewed").drained);
    assert!(said(&rig.run(&["fleet", "status"]).await).contains("1 host, 1 of them drained"));
    assert_eq!(rig.run(&["fleet", "resume", "box"]).await.status.code(), Some(0));
    assert!(!fleet.renew(&renewal).await.expect("renewed").drained);
    let nobody = rig.run(&["fleet", "drain", "bix"]).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(said(&nobody).contains("did you mean box?"), "{}", said(&nobody));

    let caps = parsed(&rig.run(&["fleet", "caps", "set", "fleet=8", "agent:claude=2", "--json"]).await, 0);
    assert_eq!(caps["caps"][1], json!({"scope": "fleet", "cap": 8, "used": 0}));
    assert_eq!(rig.run(&["fleet", "caps", "set", "fleet=none"]).await.status.code(), Some(0));
    assert_eq!(said(&rig.run(&["fleet", "caps"]).await), "agent:claude\t0\t2\n");

    let doctor = rig.run(&["doctor", "--json"]).await;
    let report: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let found: Vec<(&str, &Value)> = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter(|check| check["check"] == "fleet")
        .map(|check| (check["data"]["check"].as_str().unwrap_or("there"), &check["ok"]))
        .collect();
    for check in ["there", "version", "tls", "clock", "listen", "pooler", "log"] {
        assert!(found.contains(&(check, &json!(true))), "{check}: {found:?}");
    }
    // The server of the tests syncs nothing, and we are its superuser.
    assert!(found.contains(&("commit", &json!(false))) && found.contains(&("rights", &Value::Null)), "{found:?}");
    rig.stop_and_check_invariants([]).await;
}
