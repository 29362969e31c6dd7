//! What a consult on another machine answers, how it ends, and what is refused before anything starts.
//!
//! Laws: L3, L7, L13, L17.

use phone_opus::internals::base::fault::FaultCode;
use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::{ForkPlace, Step};
use serde_json::json;

use super::kit::{House, Way, begun, fault};

#[tokio::test]
async fn a_consult_is_answered_from_another_machine_in_the_foreground_in_the_background_and_on_resuming() {
    for way in Way::ALL {
        let mut house = House::new(way, 30).await;
        let elsewhere = house.rig.path("home").join("config").display().to_string();
        house.rig.set("CLAUDE_CONFIG_DIR", elsewhere);
        let mut host = house.rig.serve().await;
        let work = house.rig.work().display().to_string();

        let reply = host.consult(&house.rig.answering("42")).await.expect_success();
        assert_eq!((reply["response"].as_str(), reply.str("agent")), (Some("42"), "box"), "{way:?}: {:#}", reply.0);
        assert_eq!(reply.str("cwd"), work, "{way:?}");
        assert!(!reply.str("machine").is_empty() && reply["workspace_changed"].is_null(), "{way:?}: {:#}", reply.0);
        let session = reply.str("session_id").to_owned();

        let job = host.consult_in_background(&house.rig.answering("43")).await;
        let background = host.job(&job).await.expect_success();
        assert_eq!(background["response"], "43", "{way:?}");

        let asked = json!({"prompt": house.rig.answering("44"), "session_id": session, "cwd": work});
        let resumed = host.call("consult", asked).await.expect_success();
        assert_eq!(
            (resumed["response"].as_str(), resumed.str("session_id")),
            (Some("44"), session.as_str()),
            "{way:?}"
        );

        house.rig.expect_runs(3);
        for run in house.rig.runs() {
            for (name, here) in [("CLAUDE_CONFIG_DIR", None), ("ANTHROPIC_API_KEY", None), ("BOX_SECRET_KEY", None)] {
                assert_eq!(run.env(name), here, "{way:?}: {name}");
            }
            assert_eq!((run.env("NO_COLOR"), run.token().is_some()), (Some("1"), true), "{way:?}");
            assert!(run.env("HOME").is_some() && run.env("PATH").is_some(), "{way:?}: that machine's own");
            assert_eq!(run.start["cwd"], work.as_str(), "{way:?}");
        }
        for job in house.rig.jobs().await {
            assert_eq!(job.workspace.to_str(), Some(format!("box:{work}").as_str()), "{way:?}");
        }
        house.close([host]).await;
    }
}

#[tokio::test]
async fn the_agent_without_a_model_searches_the_directory_there() {
    let mut house = House::new(Way::Child, 30).await;
    std::fs::write(house.rig.work().join("zebrafish.txt"), "photosynthesis of zebrafish\n").expect("written");
    let mut host = house.rig.serve().await;
    let asked = json!({"prompt": "Where is the photosynthesis of zebrafish?", "agent": "words"});
    let reply = host.call("consult", asked).await.expect_success();
    assert!(reply["response"].as_str().is_some_and(|text| text.contains("zebrafish.txt")), "{:#}", reply.0);
    house.close([host]).await;
}

#[tokio::test]
async fn a_cancel_and_a_deadline_end_what_runs_there_with_everything_it_started() {
    for way in Way::ALL {
        let mut house = House::new(way, 30).await;
        let mut host = house.rig.serve().await;
        let steps = |sign: &str| {
            let fork = [Step::Fork(ForkPlace::Group), Step::Fork(ForkPlace::Session)];
            let begin = [Step::Text("at work".into()), Step::IgnoreTerm].into_iter().chain(fork);
            begin.chain([Step::Touch(house.rig.sign(sign)), Step::Hang]).collect::<Vec<_>>()
        };
        let job = host.consult_in_background(&house.rig.doing(steps("begun"))).await;
        begun(&house, "begun").await;
        let reply = host.call("consult_cancel", json!({"job_id": job})).await;
        assert_eq!((reply.is_error(), reply.str("status")), (false, "cancelled"), "{way:?}: {:#}", reply.0);
        assert_eq!(house.rig.agents().len(), 0, "{way:?}: {:?}", house.rig.agents());
        let read = host.job(&job).await.expect_fault("cancelled");
        assert_eq!(read["response"], "at work", "{way:?}: what it had said is kept");

        let asked = json!({"prompt": house.rig.doing(steps("late")), "timeout_s": 2});
        let late = host.call("consult", asked).await.expect_fault("deadline_exceeded");
        assert_eq!(
            (late["response"].as_str(), house.rig.agents().len()),
            (Some("at work"), 0),
            "{way:?}: {:#}",
            late.0
        );
        house.rig.expect_runs(2);
        house.close([host]).await;
    }
}

#[tokio::test]
async fn health_says_where_agents_run_and_how_many_do() {
    let mut house = House::new(Way::Unix, 30).await;
    let mut host = house.rig.serve().await;
    let at = house.exec();
    let job = host.consult_in_background(&house.rig.hanging("begun")).await;
    begun(&house, "begun").await;
    for running in [1, 0] {
        let health = host.call("health_snapshot", json!({"detail": "full"})).await;
        let rows = health["exec_agents"].as_array().expect("rows");
        let told: Vec<_> = rows.iter().map(|row| (row["agent"].as_str(), row["running"].as_u64())).collect();
        assert_eq!(told, [(Some("box"), Some(running)), (Some("words"), Some(0))], "{:#}", health.0);
        assert_eq!(rows[0]["target"].as_str(), Some(at.trim_matches('"')), "{:#}", health.0);
        host.call("consult_cancel", json!({"job_id": job})).await;
    }
    house.close([host]).await;
}

#[tokio::test]
async fn silence_and_a_payer_nobody_chose_end_the_agent_there() {
    let mut house = House::new(Way::Unix, 30).await;
    house.rig.set("PHONE_OPUS_STALL_S", "10");
    let mut host = house.rig.serve().await;
    host.consult(&house.rig.hanging("silent")).await.expect_fault("agent_stalled");
    let script = phone_opus::testkit::Script {
        key_source: Some("ANTHROPIC_API_KEY".to_owned()),
        steps: vec![Step::Hang],
        ..phone_opus::testkit::Script::default()
    };
    host.consult(&house.rig.prompt(script)).await.expect_fault("billing_mismatch");
    assert_eq!(house.rig.agents().len(), 0, "{:?}", house.rig.agents());
    house.close([host]).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_or_leads_elsewhere_is_refused_before_anything_starts() {
    let mut house = House::new(Way::Unix, 30).await;
    let work = house.rig.work();
    std::fs::write(work.join("file"), "").expect("written");
    std::os::unix::fs::symlink("/", work.join("out")).expect("a link");
    std::fs::create_dir_all(work.join("state")).expect("made");
    std::fs::write(work.join("state/phone-opus.db"), "").expect("written");
    let mut host = house.rig.serve().await;
    let prompt = house.rig.answering("42");
    // By its name alone, when the call is made.
    for (cwd, why) in [
        ("/etc".to_owned(), "outside of what this agent may look into"),
        (format!("{}/../home", work.display()), "holds `..`"),
        (format!("{}/.ssh", work.display()), "store of secrets"),
        ("work".to_owned(), "is not absolute"),
    ] {
        let said = host.call("consult", json!({"prompt": prompt, "cwd": cwd})).await;
        assert!(said.0.to_string().contains(why), "{cwd}: {:#}", said.0);
    }
    assert!(house.rig.jobs().await.is_empty(), "refused at once");
    // As its machine has it, before the agent is started.
    for (name, why) in [
        ("missing", "does not exist there"),
        ("file", "is no directory there"),
        ("out", "a link that may lead out"),
        ("out/etc", "a link that may lead out"),
        ("state", "store of secrets"),
    ] {
        let said = host.call("consult", json!({"prompt": prompt, "cwd": work.join(name)})).await;
        let said = said.expect_fault("invalid_input");
        assert!(said.text().contains(why), "{name}: {}", said.text());
    }
    house.rig.expect_runs(0);
    house.close([host]).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_and_nothing_is_run_in_its_place() {
    let mut house = House::new(Way::Child, 30).await;
    for (exec, what) in [
        ("\"unix:/nonexistent/box.sock\"", "no socket"),
        ("\"ws://127.0.0.1:9\"", "no port"),
        ("[\"/nonexistent/ssh\", \"box\"]", "no program"),
        ("[\"/bin/true\"]", "a program that is no server"),
    ] {
        house.name_agent(exec);
        let mut host = house.rig.serve().await;
        let said = host.consult(&house.rig.answering("42")).await;
        let code = said["fault"]["code"].as_str().unwrap_or_default().to_owned();
        assert!(code == "exec_unreachable", "{what}: {:#}", said.0);
        host.finish().await;
    }
    house.rig.expect_runs(0);
    for job in house.rig.jobs().await {
        assert_eq!((job.state, fault(&job)), (JobState::Failed, Some(FaultCode::ExecUnreachable)));
    }
    house.close([]).await;
}

#[tokio::test]
async fn doctor_reaches_each_machine_as_a_consult_would() {
    let house = House::new(Way::Unix, 30).await;
    let said = house.rig.run(&["doctor", "--json"]).await;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let told: serde_json::Value = serde_json::from_str(&text).expect("json");
    let checks = told["checks"].as_array().expect("checks");
    let machines: Vec<_> = checks.iter().filter(|check| check["check"] == "exec").collect();
    assert_eq!(machines.len(), 2, "{text}");
    for machine in machines {
        assert_eq!(machine["ok"], true, "{machine:#}");
        assert!(machine["text"].as_str().is_some_and(|text| text.contains("its workspaces are there")), "{machine:#}");
    }
    house.close([]).await;
}
