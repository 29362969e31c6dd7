//! Both eras over the real binary and over a system in this process: tasks and subscriptions, from begin to end.
//!
//! Laws: L1, L4, L7.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::config::clients::Clients;
use phone_opus::internals::system::{Grace, Shutdown, System};
use phone_opus::testkit::client::envelope;
use phone_opus::testkit::invariants::invariant_one_answer_each;
use phone_opus::testkit::{Reply, Rig, Role, Script, Step, TestClient, tools, tried_program, until};
use serde_json::{Map, Value, json};

/// The version that has tasks in its core.
const CORE: &str = "2025-11-25";

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_PROGRESS_S", "1")
}

/// The envelope of a client that can be given tasks.
fn tasks() -> Value {
    let mut meta = envelope();
    meta["io.modelcontextprotocol/clientCapabilities"] = json!({"extensions": {"io.modelcontextprotocol/tasks": {}}});
    meta
}

/// The task a call of the core became.
async fn begin(host: &mut TestClient, prompt: &str) -> Value {
    let params = json!({"name": "consult", "arguments": {"prompt": prompt}, "task": {"ttl": 60_000}});
    let answer = host.request("tools/call", params).await;
    answer["result"]["task"].clone()
}

/// The task a call of the extension became.
async fn given(host: &mut TestClient, prompt: &str) -> Value {
    let params = json!({"name": "consult", "arguments": {"prompt": prompt}, "_meta": tasks()});
    let answer = host.request("tools/call", params).await;
    assert_eq!(answer["result"]["resultType"], "task", "{answer:#}");
    answer["result"].clone()
}

fn id(task: &Value) -> String {
    task["taskId"].as_str().unwrap_or_else(|| panic!("no task: {task:#}")).to_owned()
}

async fn ask(host: &mut TestClient, method: &str, task: &str) -> Value {
    host.request(method, json!({"taskId": task})).await
}

async fn ask_modern(host: &mut TestClient, method: &str, task: &str) -> Value {
    let answer = host.request(method, json!({"taskId": task, "_meta": tasks()})).await;
    if answer.get("error").is_none() {
        assert_eq!(answer["result"]["resultType"], "complete", "{answer:#}");
    }
    answer
}

fn failing() -> Script {
    Script { result: Map::from_iter([("is_error".to_owned(), json!(true))]), ..Script::default() }
}

fn tagged(note: &Value) -> &Value {
    &note["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"]
}

#[tokio::test]
async fn a_task_of_the_core_works_with_progress_until_its_result_is_the_one_of_the_job() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let hello = host.handshake(CORE).await;
    let offered = json!({"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}});
    assert_eq!(hello["result"]["capabilities"]["tasks"], offered);
    let listed = host.request("tools/list", json!({})).await;
    assert_eq!(listed["result"]["tools"][0]["execution"], json!({"taskSupport": "optional"}));
    assert!(listed["result"]["tools"][1].get("execution").is_none());

    let params = json!({"name": "consult", "arguments": {"prompt": rig.waiting("begun", "go"), "background": false},
                        "task": {}, "_meta": {"progressToken": 0}});
    let created = host.request("tools/call", params).await["result"]["task"].clone();
    let task = id(&created);
    assert_eq!((&created["status"], &created["createdAt"]), (&json!("working"), &created["lastUpdatedAt"]));
    assert!(created["ttl"].is_u64() && created["pollInterval"].is_u64(), "{created:#}");
    rig.wait_for_sign("begun").await;

    // The result is waited for, and nothing waits behind it.
    let waiting = host.send("tasks/result", json!({"taskId": task})).await;
    assert_eq!(ask(&mut host, "tasks/get", &task).await["result"]["status"], "working");
    until("progress of the task", async || (host.notifications("notifications/progress").len() >= 2).then_some(()))
        .await;
    rig.give_sign("go");
    let result = host.answer(waiting).await["result"].clone();
    assert_eq!(result["structuredContent"]["response"], "done", "{result:#}");
    assert_eq!(result["_meta"]["io.modelcontextprotocol/related-task"], json!({"taskId": task}));
    let told = host.notifications("notifications/progress");
    let values: Vec<f64> = told.iter().filter_map(|note| note["params"]["progress"].as_f64()).collect();
    assert!(values.windows(2).all(|pair| pair[0] < pair[1]) && values.len() == told.len(), "{told:?}");
    assert!(told.iter().all(|note| note["params"]["progressToken"] == 0));

    let got = ask(&mut host, "tasks/get", &task).await;
    assert_eq!(got["result"]["status"], "completed", "{got:#}");
    assert!(got["result"].get("resultType").is_none() && got["result"].get("result").is_none(), "{got:#}");
    let again = ask(&mut host, "tasks/result", &task).await;
    assert_eq!(again["result"]["structuredContent"], result["structuredContent"]);
    let page = host.request("tasks/list", json!({})).await;
    assert_eq!((&page["result"]["tasks"][0]["taskId"], page["result"].get("nextCursor")), (&json!(task), None));
    // The job is the task.
    let job = host.job(&task).await.expect_success();
    assert_eq!((job.str("job_id"), job.str("mode")), (&task[..], "background"));
    assert_eq!(ask(&mut host, "tasks/cancel", &task).await["error"]["code"], -32602, "it is over");
    assert_eq!(ask(&mut host, "tasks/get", &task).await["result"]["status"], "completed");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn the_end_of_a_task_of_the_core_is_told_once_and_does_not_count_as_read() {
    let mut rig = new_rig();
    let mut host = rig.host();
    host.handshake(CORE).await;
    for (prompt, status) in [(rig.answering("42"), "completed"), (rig.prompt(failing()), "failed")] {
        let told = host.notifications("notifications/tasks/status").len();
        let task = id(&begin(&mut host, &prompt).await);
        until("the end is told", async || {
            (host.notifications("notifications/tasks/status").len() > told).then_some(())
        })
        .await;
        let note = host.notifications("notifications/tasks/status").remove(told);
        assert_eq!((&note["params"]["taskId"], &note["params"]["status"]), (&json!(task), &json!(status)), "{note:#}");
        assert!(note["params"].get("result").is_none(), "{note:#}");
        // Only who fetches the result has read it.
        let reply = host.consult(&rig.answering("43")).await.expect_success();
        assert_eq!(reply["unread_jobs"], json!([task]));
        ask(&mut host, "tasks/result", &task).await;
        let reply = host.consult(&rig.answering("44")).await.expect_success();
        assert_eq!(reply["unread_jobs"], Value::Null);
        assert_eq!(host.notifications("notifications/tasks/status").len(), told + 1, "it is told once");
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_task_of_the_extension_is_told_to_the_subscriptions_that_named_it() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let found = host.request("server/discover", json!({"_meta": envelope()})).await;
    assert_eq!(found["result"]["capabilities"]["extensions"], json!({"io.modelcontextprotocol/tasks": {}}));
    assert!(found["result"]["capabilities"].get("tasks").is_none());
    let listed = host.request("tools/list", json!({"_meta": tasks()})).await;
    assert!(!listed.to_string().contains("taskSupport"));

    let created = given(&mut host, &rig.waiting("begun", "go")).await;
    let task = id(&created);
    assert_eq!(created["status"], "working");
    assert!(created["ttlMs"].is_u64() && created["pollIntervalMs"].is_u64() && created.get("ttl").is_none());
    rig.wait_for_sign("begun").await;
    let unknown = "00000000-0000-4000-8000-000000000000";
    let mut streams = Vec::new();
    for ids in [json!([task, unknown, "no id"]), json!([task]), json!([])] {
        let params = json!({"notifications": {"taskIds": ids}, "_meta": tasks()});
        streams.push(host.send("subscriptions/listen", params).await);
    }
    until("acknowledgements", async || {
        (host.notifications("notifications/subscriptions/acknowledged").len() == 3).then_some(())
    })
    .await;
    let acknowledged = host.notifications("notifications/subscriptions/acknowledged");
    for (sent, want) in streams.iter().zip([json!([task]), json!([task]), json!([])]) {
        let note = acknowledged.iter().find(|note| *tagged(note) == sent.0).expect("its acknowledgement");
        assert_eq!(note["params"]["notifications"], json!({"taskIds": want}));
    }
    let working = ask_modern(&mut host, "tasks/get", &task).await;
    assert_eq!((&working["result"]["status"], working["result"].get("result")), (&json!("working"), None));
    rig.give_sign("go");
    let news = |host: &TestClient, over: bool| -> Vec<Value> {
        let news = host.notifications("notifications/tasks").into_iter();
        news.filter(|note| (note["params"]["status"] == "completed") == over).collect()
    };
    until("news of the end", async || (news(&host, true).len() == 2).then_some(())).await;
    for note in news(&host, true) {
        assert_eq!(note["params"]["taskId"], json!(task));
        assert_eq!(note["params"]["result"]["resultType"], "complete");
        assert_eq!(note["params"]["result"]["structuredContent"]["response"], "done");
        assert!(streams[..2].iter().any(|sent| *tagged(&note) == sent.0), "{note:#}");
    }
    assert_ne!(tagged(&news(&host, true)[0]), tagged(&news(&host, true)[1]), "each stream has its own copy");
    let over = ask_modern(&mut host, "tasks/get", &task).await;
    assert_eq!(over["result"]["status"], "completed");
    assert_eq!(over["result"]["result"]["resultType"], "complete");
    assert_eq!(over["result"]["result"]["structuredContent"]["response"], "done");
    for method in ["tasks/update", "tasks/cancel"] {
        let answer = ask_modern(&mut host, method, &task).await;
        let members: Vec<&String> = answer["result"].as_object().expect("a result").keys().collect();
        assert_eq!(members, ["_meta", "resultType"], "{method}");
    }
    assert_eq!(ask_modern(&mut host, "tasks/get", &task).await["result"]["status"], "completed", "nothing was changed");
    // A subscription its client ends says nothing more, not even a result.
    for sent in streams {
        host.cancel(sent).await;
    }
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn who_knows_no_tasks_or_wants_none_is_given_the_ordinary_reply() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let params = json!({"name": "consult", "arguments": {"prompt": rig.answering("42")}, "_meta": envelope()});
    let reply = Reply(host.request("tools/call", params).await).expect_success();
    assert_eq!((&reply["response"], &reply.0["result"]["resultType"]), (&json!("42"), &json!("complete")));
    // A caller that wants to go on at once asked for the job itself.
    let arguments = json!({"prompt": rig.answering("43"), "background": true});
    let params = json!({"name": "consult", "arguments": arguments, "_meta": tasks()});
    let reply = Reply(host.request("tools/call", params).await);
    assert_eq!((reply.str("mode"), &reply.0["result"]["resultType"]), ("background", &json!("complete")));
    // Nothing that is known to be wrong becomes a task, and a model can mend it.
    let params = json!({"name": "consult", "arguments": {"prompt": 7}, "_meta": tasks()});
    Reply(host.request("tools/call", params).await).expect_fault("invalid_input");
    until("both are over", async || rig.jobs().await.iter().all(|job| job.state.is_terminal()).then_some(())).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_task_whose_agent_failed_is_failed_in_the_core_and_completed_with_an_error_in_the_extension() {
    let mut rig = new_rig();
    let mut host = rig.host();
    host.handshake(CORE).await;
    let task = id(&begin(&mut host, &rig.prompt(failing())).await);
    let result = ask(&mut host, "tasks/result", &task).await;
    assert_eq!((&result["result"]["isError"], result.get("error")), (&json!(true), None), "{result:#}");
    let got = ask(&mut host, "tasks/get", &task).await;
    assert_eq!(got["result"]["status"], "failed");
    assert!(
        got["result"]["statusMessage"].as_str().is_some_and(|text| !text.is_empty() && text != "failed"),
        "{got:#}"
    );
    let task = id(&given(&mut host, &rig.prompt(failing())).await);
    let got = until("its end", async || {
        let got = ask_modern(&mut host, "tasks/get", &task).await;
        (got["result"]["status"] != "working").then_some(got)
    })
    .await;
    assert_eq!((&got["result"]["status"], &got["result"]["result"]["isError"]), (&json!("completed"), &json!(true)));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_cancelled_task_is_over_and_its_agent_gone() {
    let mut rig = new_rig();
    let mut host = rig.host();
    host.handshake(CORE).await;
    let task = id(&begin(&mut host, &rig.hanging("first")).await);
    rig.wait_for_sign("first").await;
    // Who waits for the result hears of the end.
    let waiting = host.send("tasks/result", json!({"taskId": task})).await;
    let got = ask(&mut host, "tasks/cancel", &task).await;
    assert_eq!((&got["result"]["status"], &got["result"]["taskId"]), (&json!("cancelled"), &json!(task)), "{got:#}");
    rig.expect_no_agent_left().await;
    assert_eq!(host.answer(waiting).await["result"]["isError"], true);
    assert_eq!(ask(&mut host, "tasks/cancel", &task).await["error"]["code"], -32602);

    let task = id(&given(&mut host, &rig.hanging("second")).await);
    rig.wait_for_sign("second").await;
    ask_modern(&mut host, "tasks/cancel", &task).await;
    let got = until("its end", async || {
        let got = ask_modern(&mut host, "tasks/get", &task).await;
        (got["result"]["status"] != "working").then_some(got)
    })
    .await;
    assert_eq!((&got["result"]["status"], got["result"].get("result")), (&json!("cancelled"), None), "{got:#}");
    rig.expect_no_agent_left().await;
    // A request that waits for a task is withdrawn like any other, and the task goes on.
    let task = id(&begin(&mut host, &rig.waiting("third", "go")).await);
    rig.wait_for_sign("third").await;
    let waiting = host.send("tasks/result", json!({"taskId": task})).await;
    host.cancel(waiting).await;
    rig.give_sign("go");
    assert_eq!(ask(&mut host, "tasks/result", &task).await["result"]["structuredContent"]["response"], "done");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_task_survives_its_session_and_its_host() {
    let mut rig = new_rig();
    let mut first = rig.host();
    first.handshake(CORE).await;
    let core = id(&begin(&mut first, &rig.waiting("one", "go")).await);
    let extension = id(&given(&mut first, &rig.waiting("two", "go")).await);
    rig.wait_for_sign("one").await;
    rig.wait_for_sign("two").await;
    first.expect_end();
    rig.kill(Role::Host);
    first.exit().await;

    let mut second = rig.host();
    second.handshake(CORE).await;
    for task in [&core, &extension] {
        assert_eq!(ask(&mut second, "tasks/get", task).await["result"]["status"], "working");
        assert_eq!(ask_modern(&mut second, "tasks/get", task).await["result"]["status"], "working");
    }
    let waiting = second.send("tasks/result", json!({"taskId": core})).await;
    rig.give_sign("go");
    assert_eq!(second.answer(waiting).await["result"]["structuredContent"]["response"], "done");
    until("the end of the other", async || {
        let got = ask_modern(&mut second, "tasks/get", &extension).await;
        (got["result"]["result"]["structuredContent"]["response"] == "done").then_some(())
    })
    .await;
    let listed = second.request("tasks/list", json!({})).await;
    assert_eq!(listed["result"]["tasks"].as_array().map(Vec::len), Some(2));
    rig.expect_runs(2);
    rig.stop_and_check_invariants([first, second]).await;
}

#[tokio::test]
async fn the_pages_of_tasks_hold_each_once_newest_first() {
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "1").with("PHONE_OPUS_MAX_QUEUED", "100");
    let mut host = rig.host();
    host.handshake(CORE).await;
    // One runs, the others wait for their turn; all are tasks.
    let mut tasks = vec![id(&begin(&mut host, &rig.hanging("begun")).await)];
    rig.wait_for_sign("begun").await;
    for _ in 0..52 {
        tasks.push(id(&begin(&mut host, &rig.answering("never")).await));
    }
    let first = host.request("tasks/list", json!({})).await;
    let cursor = first["result"]["nextCursor"].clone();
    assert_eq!(first["result"]["tasks"].as_array().map(Vec::len), Some(50));
    // A task that is accepted meanwhile shifts nothing.
    let late = id(&begin(&mut host, &rig.answering("never")).await);
    let second = host.request("tasks/list", json!({"cursor": cursor})).await;
    assert!(second["result"].get("nextCursor").is_none(), "{second:#}");
    let shown: Vec<String> = [&first, &second]
        .iter()
        .flat_map(|page| page["result"]["tasks"].as_array().expect("tasks").iter().map(id))
        .collect();
    let (mut shown_sorted, mut made) = (shown.clone(), tasks.clone());
    shown_sorted.sort();
    made.sort();
    assert_eq!(shown_sorted, made);
    assert_eq!(shown.last(), tasks.first(), "the oldest is last");
    for task in tasks.iter().rev().chain([&late]) {
        assert_eq!(ask(&mut host, "tasks/cancel", task).await["result"]["status"], "cancelled");
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_cold_discovery_starts_no_worker_and_touches_no_disk() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let found = host.request("server/discover", json!({"_meta": envelope()})).await;
    let listed = host.request("tools/list", json!({"_meta": envelope()})).await;
    for answer in [found, listed] {
        let result = &answer["result"];
        assert_eq!(result["resultType"], "complete");
        assert!(result["ttlMs"].is_u64() && result["cacheScope"] == "private", "{result:#}");
        assert_eq!(result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "phone-opus");
    }
    assert!(!rig.state_dir().root().exists(), "nothing was written");
    assert_eq!(rig.all(Role::Worker).len(), 0);
    let params = json!({"name": "health_snapshot", "arguments": {}, "_meta": envelope()});
    let health = Reply(host.request("tools/call", params).await);
    assert_eq!(health["worker_generation"], 0, "{:#}", health.0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_changed_catalog_is_told_to_each_session_and_subscription_as_it_asked() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("it starts");
    let mut legacy = TestClient::of(&system).greet().await;
    let mut listening = TestClient::of(&system).open();
    let mut silent = TestClient::of(&system).open();
    silent.request("server/discover", json!({"_meta": envelope()})).await;

    let changed = |client: &TestClient| client.notifications("notifications/tools/list_changed");
    let listen = |tools: Value| json!({"notifications": {"toolsListChanged": tools, "promptsListChanged": true}, "_meta": envelope()});
    let mut streams = Vec::new();
    for wanted in [json!(true), json!(true), json!(false)] {
        streams.push(listening.send("subscriptions/listen", listen(wanted)).await);
    }
    let acknowledged = "notifications/subscriptions/acknowledged";
    until("acknowledgements", async || (listening.notifications(acknowledged).len() == 3).then_some(())).await;
    for (note, (sent, want)) in listening.notifications(acknowledged).iter().zip(streams.iter().zip([
        json!({"toolsListChanged": true}),
        json!({"toolsListChanged": true}),
        json!({}),
    ])) {
        // In the order of asking, and what we do not have is not honoured.
        assert_eq!((tagged(note), &note["params"]["notifications"]), (&json!(sent.0), &want));
    }
    // An id that listens is in flight.
    listening
        .line(
            &json!({"jsonrpc": "2.0", "id": streams[0].0, "method": "tools/list", "params": {"_meta": envelope()}})
                .to_string(),
        )
        .await;
    until("the refusal", async || {
        Some(listening.answers_to(&streams[0].0.to_string())).filter(|found| !found.is_empty())
    })
    .await;

    system.tools_changed();
    until("both copies", async || (changed(&listening).len() == 2).then_some(())).await;
    until("the legacy session's", async || (changed(&legacy).len() == 1).then_some(())).await;
    assert!(changed(&legacy)[0].get("params").is_none());
    let tags: Vec<Value> = changed(&listening).iter().map(|note| tagged(note).clone()).collect();
    assert_eq!(tags, [json!(streams[0].0), json!(streams[1].0)]);

    // Both eras on one connection: it hears of it in both.
    listening.handshake("2025-06-18").await;
    listening.cancel(streams[0]).await;
    system.tools_changed();
    until("one tagged, one not", async || (changed(&listening).len() == 4).then_some(())).await;
    let tags: Vec<Value> = changed(&listening)[2..].iter().map(|note| tagged(note).clone()).collect();
    assert_eq!(tags, [Value::Null, json!(streams[1].0)]);
    legacy.ping().await;
    silent.ping().await;
    assert_eq!((changed(&legacy).len(), changed(&silent).len()), (2, 0), "who listens to nothing is told nothing");

    // What ends for good says so, on each stream, and the sessions that are left hear nothing of it.
    for client in [&mut legacy, &mut listening, &mut silent] {
        client.expect_end();
    }
    assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
    for sent in &streams[1..] {
        let last = listening.answer(*sent).await;
        assert_eq!(last["result"]["resultType"], "complete");
        assert_eq!(last["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"], json!(sent.0));
    }
    rig.stop_and_check_invariants([legacy, listening, silent]).await;
}

#[tokio::test]
async fn subscriptions_are_bounded_and_a_cancelled_one_makes_room() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let listen = json!({"notifications": {"toolsListChanged": true}, "_meta": envelope()});
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(host.send("subscriptions/listen", listen.clone()).await);
    }
    let refused = host.request("subscriptions/listen", listen.clone()).await;
    assert_eq!(refused["error"]["data"]["code"], "busy", "{refused:#}");
    host.cancel(streams[0]).await;
    let last = host.send("subscriptions/listen", listen).await;
    host.ping().await;
    assert_eq!(host.notifications("notifications/subscriptions/acknowledged").len(), 33);
    // They end with their connection, without a word.
    streams.push(last);
    for sent in streams {
        host.give_up_on(sent);
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn progress_of_a_call_and_its_cancel_are_the_same_in_the_stateless_era() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let mut meta = envelope();
    meta["progressToken"] = json!("p");
    let prompt = rig.doing(vec![Step::Touch(rig.sign("begun")), Step::Hang]);
    let params = json!({"name": "consult", "arguments": {"prompt": prompt}, "_meta": meta});
    let sent = host.send("tools/call", params).await;
    rig.wait_for_sign("begun").await;
    until("progress", async || (!host.notifications("notifications/progress").is_empty()).then_some(())).await;
    host.cancel(sent).await;
    let told = host.notifications("notifications/progress").len();
    rig.expect_no_agent_left().await;
    let job = rig.only_job_over().await;
    assert_eq!(job.state.as_str(), "cancelled");
    host.ping().await;
    assert_eq!(host.notifications("notifications/progress").len(), told, "nothing after a cancel");
    rig.stop_and_check_invariants([host]).await;
}

/// A system whose one tool never answers, and what is remembered about clients by now: how long each is waited for.
async fn with_a_stuck_tool(dir: &Path) -> (System, impl Fn(&str) -> u64 + use<>) {
    let state = StateDir::at(dir.join("state"));
    state.create().expect("created");
    // Each was seen to give up once, a minute ago.
    let before = UnixMillis(UnixMillis::now().0 - 60_000);
    let once = |limit: &str| json!({limit: {"times": 1, "at": before}});
    let known = json!({"rig": once("20"), "of the stateless era": once("30")});
    std::fs::write(state.clients(), known.to_string()).expect("written");
    let system = System::builder().state_dir(state.clone()).telemetry_log(false).tool(tools::stuck());
    let seen =
        move |client: &str| Clients::new(Arc::default(), Some(state.clients())).profile(Some(client)).wait.as_secs();
    (system.start().await.expect("it starts"), seen)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_twice_after_the_same_number_of_seconds_is_remembered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (system, seen) = with_a_stuck_tool(dir.path()).await;
    let mut legacy = TestClient::of(&system).greet().await;
    let mut modern = TestClient::of(&system).open();
    let mut meta = envelope();
    meta["io.modelcontextprotocol/clientInfo"] = json!({"name": "of the stateless era", "version": "1"});
    // What was seen once changes nothing, nor does anything in the first seconds.
    for (after, name, want) in
        [(5, "rig", 50), (30, "rig", 50), (20, "rig", 18), (30, "of the stateless era", 27), (45, "rig", 18)]
    {
        let (client, meta) = if name == "rig" { (&mut legacy, json!({})) } else { (&mut modern, meta.clone()) };
        let sent = client.send("tools/call", json!({"name": "stuck", "arguments": {}, "_meta": meta})).await;
        client.ping().await;
        tokio::time::advance(Duration::from_secs(after)).await;
        client.cancel(sent).await;
        until("what is remembered", async || (seen(name) == want).then_some(())).await;
    }
    for client in [&mut legacy, &mut modern] {
        client.finish().await;
        assert_eq!(invariant_one_answer_each(&client.exchange()), Ok(()));
    }
    assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_withdrawn_together_say_no_more_than_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (system, seen) = with_a_stuck_tool(dir.path()).await;
    let mut client = TestClient::of(&system).greet().await;
    let mut sent = Vec::new();
    for _ in 0..5 {
        sent.push(client.send("tools/call", json!({"name": "stuck", "arguments": {}})).await);
    }
    client.ping().await;
    tokio::time::advance(Duration::from_secs(30)).await;
    for sent in sent {
        client.cancel(sent).await;
    }
    let file = dir.path().join("state/clients.json");
    until("the sighting", async || (std::fs::read_to_string(&file).ok()?.matches("\"30\"").count() == 2).then_some(()))
        .await;
    assert_eq!(seen("rig"), 50);
    client.finish().await;
    assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
}

#[tokio::test]
async fn a_client_that_gives_up_is_handed_over_to_before_and_told_why_unless_it_says_how_long_it_waits() {
    let mut rig = new_rig();
    rig.unset("PHONE_OPUS_WAIT_S");
    rig.state_dir().create().expect("created");
    let mut hosts = Vec::new();
    for isolation in ["in_process", "process"] {
        let seen = json!({"rig": {"2": {"times": 2, "at": UnixMillis::now()}}});
        std::fs::write(rig.state_dir().clients(), seen.to_string()).expect("written");
        std::fs::set_permissions(rig.state_dir().clients(), std::fs::Permissions::from_mode(0o600)).expect("set");
        rig.set("PHONE_OPUS_ISOLATION", isolation);
        let mut host = rig.serve().await;
        let reply = host.call("consult", json!({"prompt": rig.hanging(&format!("begun {isolation}"))})).await;
        assert_eq!((reply.str("status"), reply.str("mode")), ("running", "background"), "{:#}", reply.0);
        for said in [reply.text(), reply.str("next")] {
            assert!(said.contains("give up calls after 2 s") && said.contains("wait_s"), "{said}");
        }
        let job = reply.str("job_id").to_owned();
        host.call("consult_cancel", json!({"job_id": job})).await;
        // Who says how long it waits is waited for that long.
        let prompt = rig.doing(vec![Step::DelayMs(3000)]);
        host.call("consult", json!({"prompt": prompt, "wait_s": 60})).await.expect_success();
        hosts.push(host);
    }
    rig.stop_and_check_invariants(hosts).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_told_once_that_the_tools_differ() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("it starts");
    let mut stalled = TestClient::of(&system).not_reading().open();
    stalled.send_greeting("2025-11-25").await;
    // More than a session keeps for a client before it stops reading.
    for _ in 0..400 {
        stalled.send("tools/list", json!({})).await;
    }
    let mut other = TestClient::of(&system).greet().await;
    for _ in 0..50 {
        other.ping().await;
    }
    let before = changes_told_to(&other);
    for _ in 0..1000 {
        system.tools_changed();
    }
    until("the other's news", async || (changes_told_to(&other) > before).then_some(())).await;
    stalled.read_on();
    until("its news", async || (changes_told_to(&stalled) > 0).then_some(())).await;
    stalled.ping().await;
    assert_eq!(changes_told_to(&stalled), 1);
    rig.stop_system_and_check_invariants(system, [stalled, other]).await;
}

fn changes_told_to(client: &TestClient) -> usize {
    client.notifications("notifications/tools/list_changed").len()
}
