//! rmcp, a client we did not write, against the real program, in every way it can begin a session.
//!
//! What the other foreign clients see is checked by hand with `tests/interop`; this one needs nothing but the crate.
//!
//! Laws: L1, L8, L15.

#![expect(clippy::panic, clippy::expect_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::{PATIENCE, Rig, Script, Step, tools, tried_program, until, until_seen};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, ClientCapabilities, ClientConfig,
    CreateTaskResult, GetTaskParams, Implementation, ProgressNotificationParam, ProtocolVersion, ServerNotification,
    SubscriptionFilter, TaskPayload, TaskStatus, UpdateTaskParams,
};
use rmcp::service::{NotificationContext, Peer, RunningService, ServiceError, SubscriptionEnd};
use rmcp::transport::TokioChildProcess;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{Map, Value, json};

/// How rmcp begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Era {
    /// With `initialize`.
    Legacy,
    /// With `server/discover`, and nothing else.
    Modern,
    /// With `server/discover`, ready for either.
    Auto,
}

impl Era {
    fn lifecycle(self) -> ClientLifecycleMode {
        let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
        match self {
            Self::Legacy => ClientLifecycleMode::Initialize,
            Self::Modern => ClientLifecycleMode::Discover { preferred_versions },
            Self::Auto => ClientLifecycleMode::Auto { preferred_versions, legacy_version: None },
        }
    }

    fn version(self) -> &'static str {
        if self == Self::Legacy { "2025-11-25" } else { "2026-07-28" }
    }
}

/// What the client keeps of what it is told.
#[derive(Clone, Default)]
struct Ear {
    tasks: bool,
    /// The version it greets with; rmcp's newest otherwise.
    version: Option<ProtocolVersion>,
    progress: Arc<Mutex<Vec<ProgressNotificationParam>>>,
    changes: Arc<AtomicUsize>,
}

impl ClientHandler for Ear {
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::default();
        if self.tasks {
            capabilities.extensions = Some([("io.modelcontextprotocol/tasks".to_owned(), Map::new())].into());
        }
        let config = ClientConfig::new(capabilities, Implementation::new("rmcp-client", "3.9.0"));
        match &self.version {
            Some(version) => config.with_protocol_version(version.clone()),
            None => config,
        }
    }

    fn on_progress(
        &self,
        told: ProgressNotificationParam,
        _: NotificationContext<RoleClient>,
    ) -> impl Future<Output = ()> {
        self.progress.lock().expect("the list").push(told);
        std::future::ready(())
    }

    fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) -> impl Future<Output = ()> {
        self.changes.fetch_add(1, Ordering::SeqCst);
        std::future::ready(())
    }
}

type Guest = RunningService<RoleClient, Ear>;

async fn connect_as(rig: &Rig, era: Era, ear: Ear) -> Guest {
    let stderr = std::fs::File::create(rig.path("host-1.stderr")).expect("a file");
    let server = TokioChildProcess::builder(rig.command(&["mcp", "serve"])).stderr(stderr).spawn();
    let (server, _) = server.expect("a server");
    let connected = tokio::time::timeout(PATIENCE, ear.serve_with_lifecycle(server, era.lifecycle())).await;
    connected.expect("an answer").unwrap_or_else(|error| panic!("{era:?}: {error}"))
}

async fn connect(rig: &Rig, era: Era) -> Guest {
    connect_as(rig, era, Ear::default()).await
}

/// The client ends as it always does, and nothing is left of what it used.
async fn leave(mut guest: Guest, rig: Rig) {
    let began = Instant::now();
    guest.close().await.expect("an end");
    // It waits three seconds before it sends a signal.
    assert!(began.elapsed() < Duration::from_secs(3), "the server took {:?} to end", began.elapsed());
    rig.check_invariants().await;
}

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_PROGRESS_S", "1")
}

fn asking(tool: &'static str, arguments: Value) -> CallToolRequestParams {
    let Value::Object(arguments) = arguments else { panic!("no object: {arguments}") };
    CallToolRequestParams::new(tool).with_arguments(arguments)
}

async fn call(client: &Peer<RoleClient>, tool: &'static str, arguments: Value) -> CallToolResult {
    match client.call_tool_once(asking(tool, arguments)).await {
        Ok(CallToolResponse::Complete(result)) => result,
        other => panic!("{tool}: {other:?}"),
    }
}

async fn consult(client: &Peer<RoleClient>, prompt: &str) -> CallToolResult {
    call(client, "consult", json!({ "prompt": prompt })).await
}

/// The response, which must stand in the text and in the structured part: clients show their models one or the other.
fn answer(result: &CallToolResult) -> String {
    let structured = result.structured_content.as_ref().expect("a structured part");
    let response = structured["response"].as_str().unwrap_or_else(|| panic!("no response: {structured:#}"));
    let text = &result.content[0].as_text().expect("a text").text;
    assert!(text.contains(response) && result.is_error != Some(true), "{text}");
    response.to_owned()
}

/// Declares each of these as a test of every era.
macro_rules! in_every_era {
    ($($(#[$note:meta])* $law:ident)*) => { in_every_era!(@ legacy Legacy, modern Modern, auto Auto; [$($law)*]); };
    (@ $($module:ident $era:ident),*; $laws:tt) => { $(in_every_era!(# $module $era $laws);)* };
    (# $module:ident $era:ident [$($law:ident)*]) => {
        mod $module {
            $(#[tokio::test]
            async fn $law() {
                super::$law(super::Era::$era).await;
            })*
        }
    };
}

in_every_era! {
    connects_and_ends_in_order
    lists_the_tools
    consults_and_reads_errors
    calls_in_parallel
    cancels_by_giving_up
    hears_progress
    is_given_tasks_where_it_knows_them
    walks_the_pages_of_an_embedding_program_and_hears_that_they_changed
    hears_nothing_of_a_worker_that_crashed
    hears_nothing_of_a_worker_process_that_was_killed
    stays_connected_through_an_upgrade
}

#[tokio::test]
async fn an_older_client_is_served_in_its_own_version() {
    for version in [ProtocolVersion::V_2024_11_05, ProtocolVersion::V_2025_03_26, ProtocolVersion::V_2025_06_18] {
        let rig = new_rig();
        let ear = Ear { version: Some(version.clone()), ..Ear::default() };
        let guest = connect_as(&rig, Era::Legacy, ear).await;
        assert_eq!(guest.peer_info().expect("it said who it is").protocol_version, version);
        let consult = &guest.list_all_tools().await.expect("the tools")[0];
        assert_eq!(consult.annotations.is_some(), version > ProtocolVersion::V_2024_11_05);
        assert_eq!(consult.title.is_some(), version == ProtocolVersion::V_2025_06_18);
        let result = call(&guest, "consult", json!({ "prompt": rig.answering("forty-two") })).await;
        assert!(result.content[0].as_text().expect("a text").text.contains("forty-two"), "{version}");
        assert_eq!(result.structured_content.is_some(), version == ProtocolVersion::V_2025_06_18);
        // What a newer client reads as a result is an error to this one.
        match guest.call_tool_once(asking("consult", json!({"prompt": " "}))).await {
            Err(ServiceError::McpError(error)) => assert_eq!(error.code.0, -32602, "{error}"),
            other => panic!("{version}: {other:?}"),
        }
        leave(guest, rig).await;
    }
}

async fn connects_and_ends_in_order(era: Era) {
    let rig = new_rig();
    let guest = connect(&rig, era).await;
    let host = guest.peer_info().expect("it said who it is");
    assert_eq!(host.protocol_version.as_str(), era.version());
    assert_eq!(host.server_info.as_ref().map(|info| &info.name[..]), Some("phone-opus"));
    let instructions = host.instructions.as_deref().unwrap_or_default();
    assert!(instructions.contains("consult_job") && instructions.len() < 600, "{instructions}");
    leave(guest, rig).await;
}

async fn lists_the_tools(era: Era) {
    let rig = new_rig();
    let guest = connect(&rig, era).await;
    let tools = guest.list_all_tools().await.expect("the tools");
    let names: Vec<&str> = tools.iter().map(|tool| &tool.name[..]).collect();
    let all = ["consult", "consult_job", "consult_jobs", "consult_cancel", "health_snapshot", "telemetry_snapshot"];
    assert_eq!(names, all);
    let consult = tools[0].annotations.as_ref().expect("its promises");
    assert_eq!((consult.read_only_hint, consult.open_world_hint), (Some(true), Some(true)));
    // Whoever lists them twice is told the same.
    assert_eq!(guest.list_all_tools().await.expect("the tools"), tools);
    leave(guest, rig).await;
}

async fn consults_and_reads_errors(era: Era) {
    let rig = new_rig();
    let guest = connect(&rig, era).await;
    let result = consult(&guest, &rig.answering("forty-two")).await;
    assert_eq!(answer(&result), "forty-two");

    let refused = call(&guest, "consult", json!({"prompt": " ", "bogus": 1})).await;
    let text = &refused.content[0].as_text().expect("a text").text;
    assert!(refused.is_error == Some(true) && text.contains("bogus") && text.contains("blank"), "{text}");
    let overloaded = [("is_error".to_owned(), json!(true)), ("api_error_status".to_owned(), json!(529))];
    let failing = rig.prompt(Script { result: overloaded.into_iter().collect(), ..Script::default() });
    let failed = consult(&guest, &failing).await;
    let structured = failed.structured_content.expect("a structured part");
    assert_eq!((failed.is_error, &structured["fault"]["code"]), (Some(true), &json!("agent_overloaded")));
    match guest.call_tool_once(asking("no_such_tool", json!({}))).await {
        Err(ServiceError::McpError(error)) => assert_eq!(error.code.0, -32602, "{error}"),
        other => panic!("an unknown tool: {other:?}"),
    }
    leave(guest, rig).await;
}

async fn calls_in_parallel(era: Era) {
    let rig = new_rig();
    let guest = connect(&rig, era).await;
    let slow = ["one", "two", "three"].map(|name| {
        let steps = vec![Step::Touch(rig.sign(name)), Step::WaitForFile(rig.sign("go"))];
        rig.prompt(Script { steps, answer: Some(name.to_owned()), ..Script::default() })
    });
    let slow = slow.map(|prompt| {
        let client = guest.peer().clone();
        tokio::spawn(async move { answer(&consult(&client, &prompt).await) })
    });
    for sign in ["one", "two", "three"] {
        rig.wait_for_sign(sign).await;
    }
    // While three consults wait, quick calls and more of them than agents may run are answered.
    let quick = (0..32).map(|_| {
        let client = guest.peer().clone();
        tokio::spawn(async move { call(&client, "consult_jobs", json!({})).await.is_error })
    });
    for quick in quick.collect::<Vec<_>>() {
        assert_ne!(quick.await.expect("a quick answer"), Some(true));
    }
    assert!(slow.iter().all(|call| !call.is_finished()));
    rig.give_sign("go");
    for (call, name) in slow.into_iter().zip(["one", "two", "three"]) {
        assert_eq!(call.await.expect("an answer"), name);
    }
    rig.expect_runs(3);
    leave(guest, rig).await;
}

async fn cancels_by_giving_up(era: Era) {
    let rig = new_rig();
    let guest = connect(&rig, era).await;
    let client = guest.peer().clone();
    let prompt = rig.hanging("begun");
    let waiting = tokio::spawn(async move { consult(&client, &prompt).await });
    rig.wait_for_sign("begun").await;
    // A future of rmcp that is dropped cancels its request.
    waiting.abort();
    assert_eq!(rig.only_job_over().await.state, JobState::Cancelled);
    assert_eq!(answer(&consult(&guest, &rig.answering("still here")).await), "still here");
    leave(guest, rig).await;
}

async fn hears_progress(era: Era) {
    let rig = new_rig();
    let ear = Ear::default();
    let progress = Arc::clone(&ear.progress);
    let guest = connect_as(&rig, era, ear).await;
    let client = guest.peer().clone();
    let prompt = rig.waiting("begun", "go");
    let waiting = tokio::spawn(async move { answer(&consult(&client, &prompt).await) });
    until_seen("progress", async || {
        let told = progress.lock().expect("the list").len();
        if told >= 2 { Ok(()) } else { Err(told) }
    })
    .await;
    rig.give_sign("go");
    assert_eq!(waiting.await.expect("an answer"), "done");
    let told = progress.lock().expect("the list").clone();
    let in_order = |pair: &[ProgressNotificationParam]| {
        pair[0].progress < pair[1].progress && pair[0].progress_token == pair[1].progress_token
    };
    assert!(told.windows(2).all(in_order), "{told:?}");
    assert!(told.iter().all(|told| told.message.as_deref().is_some_and(|text| !text.is_empty())), "{told:?}");
    leave(guest, rig).await;
}

/// Another build of the program is put in its place in the middle of a consult.
async fn stays_connected_through_an_upgrade(era: Era) {
    // Only `/proc` shows which image runs; elsewhere than on Linux there is nothing to see.
    if !cfg!(target_os = "linux") {
        return;
    }
    let installed = tempfile::tempdir().expect("a directory");
    let program = installed.path().join("phone-opus");
    install(&program, b"");
    let rig = Rig::new(&program).with("PHONE_OPUS_PROGRESS_S", "1");
    let ear = Ear::default();
    let progress = Arc::clone(&ear.progress);
    let heard = async |more_than: usize| {
        let told = || progress.lock().expect("the list").len();
        until_seen("progress", async || if told() > more_than { Ok(()) } else { Err(told()) }).await;
    };
    let stderr = std::fs::File::create(rig.path("host-1.stderr")).expect("a file");
    let server = TokioChildProcess::builder(rig.command(&["mcp", "serve"])).stderr(stderr).spawn();
    let (server, _) = server.expect("a server");
    let pid = server.id().expect("it runs");
    let connected = tokio::time::timeout(PATIENCE, ear.serve_with_lifecycle(server, era.lifecycle())).await;
    let guest = connected.expect("an answer").expect("a session");

    let client = guest.peer().clone();
    let prompt = rig.waiting("begun", "go");
    let waiting = tokio::spawn(async move { answer(&consult(&client, &prompt).await) });
    rig.wait_for_sign("begun").await;
    heard(0).await;
    install(&program, b"another build");
    let process = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::USR2).expect("it runs");
    until_seen("the next image", async || {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains("--restore") { Ok(()) } else { Err(words) }
    })
    .await;
    let before = progress.lock().expect("the list").len();
    heard(before).await;
    rig.give_sign("go");
    assert_eq!(waiting.await.expect("an answer"), "done");
    let told: Vec<f64> = progress.lock().expect("the list").iter().map(|told| told.progress).collect();
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "{told:?}");
    let health = call(&guest, "health_snapshot", json!({})).await.structured_content.expect("a structured part");
    assert_eq!(health["rollout"]["adopted"], 1, "{health:#}");
    rig.expect_runs(1);
    leave(guest, rig).await;
}

/// Puts a copy of the program in place, as an installer does; what follows its end makes it another build.
fn install(program: &Path, more: &[u8]) {
    let new = program.with_extension("new");
    let _bytes = std::fs::copy(tried_program(env!("CARGO_BIN_EXE_phone-opus")), &new).expect("a copy");
    let mut file = std::fs::OpenOptions::new().append(true).open(&new).expect("a file");
    file.write_all(more).expect("room");
    drop(file);
    std::fs::rename(new, program).expect("it is put in place");
}

async fn task(guest: &Guest, prompt: &str) -> CreateTaskResult {
    match guest.call_tool_once(asking("consult", json!({ "prompt": prompt }))).await {
        Ok(CallToolResponse::Task(task)) => task,
        other => panic!("no task: {other:?}"),
    }
}

async fn is_given_tasks_where_it_knows_them(era: Era) {
    let rig = new_rig();
    let guest = connect_as(&rig, era, Ear { tasks: true, ..Ear::default() }).await;
    if era == Era::Legacy {
        // It knows the extension only, which means nothing here.
        assert_eq!(answer(&consult(&guest, &rig.answering("at once")).await), "at once");
        return leave(guest, rig).await;
    }
    let created = task(&guest, &rig.waiting("begun", "go")).await.task;
    assert_eq!(created.status, TaskStatus::Working);
    rig.wait_for_sign("begun").await;
    let looked = guest.get_task(GetTaskParams::new(&created.task_id)).await.expect("the task");
    assert_eq!((looked.task.status(), &looked.task.task.created_at), (TaskStatus::Working, &created.created_at));
    rig.give_sign("go");
    let result = until("the task is over", async || {
        match guest.get_task(GetTaskParams::new(&created.task_id)).await.expect("the task").task.payload {
            TaskPayload::Working => None,
            TaskPayload::Completed { result } => Some(result),
            other => panic!("{other:?}"),
        }
    })
    .await;
    let result: CallToolResult = serde_json::from_value(Value::Object(result)).expect("a tool's result");
    assert_eq!(answer(&result), "done");

    let hanging = task(&guest, &rig.hanging("hangs")).await.task.task_id;
    rig.wait_for_sign("hangs").await;
    guest.cancel_task(CancelTaskParams::new(&hanging)).await.expect("it is taken");
    until("the task is cancelled", async || {
        let task = guest.get_task(GetTaskParams::new(&hanging)).await.expect("the task").task;
        (task.status() == TaskStatus::Cancelled).then_some(())
    })
    .await;
    let nothing = UpdateTaskParams::new("no-such-task", Default::default());
    assert!(matches!(guest.update_task(nothing).await, Err(ServiceError::McpError(error)) if error.code.0 == -32602));

    // A subscription is acknowledged, and ends without a word when its client wants it to.
    let filter = SubscriptionFilter::builder().tools_list_changed().build();
    let mut subscription = guest.listen(filter.clone()).await.expect("a subscription");
    assert_eq!(subscription.acknowledged(), &filter);
    subscription.cancel().await.expect("its end");
    assert_eq!(subscription.end(), Some(&SubscriptionEnd::Cancelled));
    leave(guest, rig).await;
}

async fn walks_the_pages_of_an_embedding_program_and_hears_that_they_changed(era: Era) {
    let rig = new_rig();
    let system = (0..250).fold(rig.system(), |system, n| system.tool(tools::echo().named(format!("echo_{n}"))));
    let system = system.start().await.expect("it starts");
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (input, output) = tokio::io::split(theirs);
    let serving = tokio::spawn({
        let system = system.clone();
        async move { system.serve(input, output).await }
    });
    let ear = Ear::default();
    let changes = Arc::clone(&ear.changes);
    let mut guest = ear.serve_with_lifecycle(ours, era.lifecycle()).await.expect("an answer");
    let first = guest.list_tools(None).await.expect("a page");
    assert!(first.next_cursor.is_some() && first.tools.len() == 100, "{} tools", first.tools.len());
    let tools = guest.list_all_tools().await.expect("every page");
    let names: BTreeSet<&str> = tools.iter().map(|tool| &tool.name[..]).collect();
    assert_eq!((tools.len(), names.len(), &tools[255].name[..]), (256, 256, "echo_249"));

    if era == Era::Legacy {
        system.tools_changed();
        until("the change is heard", async || (changes.load(Ordering::SeqCst) == 1).then_some(())).await;
    } else {
        let filter = SubscriptionFilter::builder().tools_list_changed().build();
        let mut subscription = guest.listen(filter).await.expect("a subscription");
        system.tools_changed();
        let told = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("in time").expect("news");
        assert!(matches!(told, Some(ServerNotification::ToolListChangedNotification(_))), "{told:?}");
        subscription.cancel().await.expect("its end");
        assert_eq!(changes.load(Ordering::SeqCst), 0, "only who asked is told, where it asked");
    }
    guest.close().await.expect("an end");
    serving.await.expect("no panic").expect("served");
    rig.stop_system_and_check_invariants(system, []).await;
}

async fn hears_nothing_of_a_worker_that_crashed(era: Era) {
    let rig = new_rig().with("PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY", "tools/call:consult");
    let guest = connect(&rig, era).await;
    assert_eq!(answer(&consult(&guest, &rig.answering("all the same")).await), "all the same");
    expect_next_generation(&guest).await;
    rig.expect_runs(1);
    leave(guest, rig).await;
}

async fn hears_nothing_of_a_worker_process_that_was_killed(era: Era) {
    let rig =
        new_rig().with("PHONE_OPUS_ISOLATION", "process").with_faults("worker.before_reply@tools/call:consult=kill");
    let guest = connect(&rig, era).await;
    assert_eq!(answer(&consult(&guest, &rig.answering("all the same")).await), "all the same");
    expect_next_generation(&guest).await;
    rig.expect_runs(1);
    leave(guest, rig).await;
}

async fn expect_next_generation(guest: &Guest) {
    let health = call(guest, "health_snapshot", json!({})).await.structured_content.expect("a structured part");
    assert_eq!((&health["worker_generation"], &health["restart_count"]), (&json!(2), &json!(1)), "{health:#}");
}
