//! What the program does with systems.
//!
//! Owns: one function for each chapter of docs/embedding.md. May not know: what is left afterwards, which `main` looks at.

use std::error::Error as _;
use std::time::{Duration, Instant};

use phone_opus::{
    Client, Consult, ConsultFault, Cursor, Down, Environment, FaultCode, Faults, Grace, Isolation, JobEvent, JobEvents,
    JobId, JobRecord, JobState, Session, Shutdown, StateDir, System, WorkerCommand,
};
use serde_json::json;
use tokio::net::UnixStream;

use crate::client::McpClient;
use crate::machine;
use crate::surroundings::Surroundings;
use crate::tools::{Book, Charge};
use crate::{PATIENCE, Problem, World};

async fn consulting(world: &World, name: &str) -> Result<System, Problem> {
    let system = System::builder()
        .state_dir(StateDir::at(&world.states.join(name)))
        .program(&world.registry)
        .environment(Environment::capture())
        .start_dir(Some(world.project.clone()))
        .tool(Charge(Book::default()))
        .start()
        .await?;
    Ok(system)
}

async fn in_order(system: System) -> Result<(), Problem> {
    match system.shutdown(Grace::default()).await {
        Shutdown::InOrder => Ok(()),
        other => Err(format!("not in order: {other:?}").into()),
    }
}

async fn session(system: &System, world: &World) -> Result<Session, Problem> {
    Ok(system.open_session(Client::new("embedding").cwd(&world.project).environment(Environment::capture())).await?)
}

fn question() -> Consult {
    Consult::new("how is a crashed worker restarted?").agent("offline").timeout(Duration::from_secs(60))
}

pub async fn a_consult_is_typed_and_so_is_its_fault(world: &World) -> Result<(), Problem> {
    let system = consulting(world, "consults").await?;
    let session = session(&system, world).await?;
    let outcome = session.consult(question().request_key("once")).await?;
    if !outcome.response.contains("notes.md") || outcome.record.state != JobState::Succeeded {
        return Err(format!("{outcome:?}").into());
    }
    // Asked again, it is the same job and no second run.
    let again = session.consult(question().request_key("once")).await?;
    if again.job_id != outcome.job_id {
        return Err(format!("{} was run again as {}", outcome.job_id, again.job_id).into());
    }
    // Several at once.
    let (one, two, three) =
        tokio::try_join!(session.consult(question()), session.consult(question()), session.consult(question()))?;
    if one.job_id == two.job_id || two.job_id == three.job_id {
        return Err("two consults are one job".into());
    }
    let fault = session.consult(question().agent("nobody")).await.err().ok_or("an unknown agent answered")?;
    let source = fault.source().map(ToString::to_string).unwrap_or_default();
    match &fault {
        ConsultFault::Refused(refused) if refused.code == FaultCode::InvalidInput && source.contains("nobody") => {}
        other => return Err(format!("{other:?}").into()),
    }
    // Where it may not look, it is refused as any client's is.
    let elsewhere = session.consult(question().cwd(&world.states)).await;
    if !matches!(elsewhere, Err(ConsultFault::Refused(_))) {
        return Err(format!("outside of its directory: {elsewhere:?}").into());
    }
    in_order(system).await
}

pub async fn an_agent_of_ones_own_answers_and_fails(world: &World) -> Result<(), Problem> {
    let system = consulting(world, "agents").await?;
    let session = session(&system, world).await?;
    let ask = async |prompt: &str| session.consult(Consult::new(prompt).agent("counter")).await;
    let (answered, failed) = tokio::join!(ask("how many words are these?"), ask("please give up"));
    if answered?.response != "5 words" {
        return Err("it counted wrong".into());
    }
    // What the end of its program means is the library's to say.
    match failed {
        Err(ConsultFault::Ended { fault, record })
            if fault.code == FaultCode::AgentError && record.state == JobState::Failed => {}
        other => return Err(format!("an agent that gave up: {other:?}").into()),
    }
    in_order(system).await
}

pub async fn an_agent_runs_on_a_machine_of_ones_own(world: &World) -> Result<(), Problem> {
    let system = consulting(world, "machines").await?;
    let session = session(&system, world).await?;
    let ask = || Consult::new("how many words are these?").agent(machine::AGENT);
    let answered = session.consult(ask().cwd(&world.project)).await?;
    let on = answered.record.request.machine.clone();
    if answered.response != "5 words" || on.as_deref() != Some("own:box") {
        return Err(format!("{:?} on {on:?}", answered.response).into());
    }
    // No workspace of that agent holds it.
    if !matches!(session.consult(ask().cwd("/etc")).await, Err(ConsultFault::Refused(_))) {
        return Err("it was asked about a directory nobody named".into());
    }
    in_order(system).await
}

/// The events of a job to its end, whose numbers rise; and the job as it ended.
async fn to_the_end(mut events: JobEvents) -> Result<(Vec<u64>, JobRecord), Problem> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut ended = None;
    while let Some(event) = tokio::time::timeout(PATIENCE, events.next()).await? {
        match event? {
            JobEvent::Entry(entry) if numbers.last().is_none_or(|last| *last < entry.seq) => numbers.push(entry.seq),
            JobEvent::Ended(record) => ended = Some(record),
            other => return Err(format!("after {numbers:?}: {other:?}").into()),
        }
    }
    let ended = ended.ok_or("the events ended without the job's end")?;
    Ok((numbers, JobRecord::clone(&ended)))
}

pub async fn a_background_job_is_followed_to_its_end(world: &World) -> Result<(), Problem> {
    let system = consulting(world, "jobs").await?;
    let session = session(&system, world).await?;
    let job: JobId = session.start(question()).await?;
    let (live, record) = to_the_end(system.jobs().subscribe(job, Cursor::START)).await?;
    if record.state != JobState::Succeeded || live.len() < 3 {
        return Err(format!("{:?} after {live:?}", record.state).into());
    }
    // Replayed, whole and from the middle.
    let (replayed, _) = to_the_end(session.subscribe(job, Cursor::START).await?).await?;
    let (rest, _) = to_the_end(system.jobs().subscribe(job, Cursor::after(live[1]))).await?;
    if replayed != live || rest != live[2..] {
        return Err(format!("live {live:?}, replayed {replayed:?}, from the middle {rest:?}").into());
    }
    if system.jobs().get(job).await?.state != JobState::Succeeded {
        return Err("the store says otherwise".into());
    }
    in_order(system).await
}

/// A client of a system over streams in memory.
async fn with_client<T>(
    system: &System,
    work: impl AsyncFnOnce(&mut McpClient<tokio::io::DuplexStream>) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let (reader, writer) = tokio::io::split(server);
    let serving = tokio::spawn({
        let system = system.clone();
        async move { system.serve(reader, writer).await }
    });
    let mut client = McpClient::greeting(client).await?;
    let done = work(&mut client).await?;
    drop(client);
    serving.await??;
    Ok(done)
}

pub async fn a_tool_of_ones_own_is_not_run_twice() -> Result<(), Problem> {
    let book = Book::default();
    // Twice the worker is lost with the answer in its hands; each time the next one finds the booking.
    let faults =
        Faults::armed("worker.before_reply@tools/call:charge#1=panic; worker.before_reply@tools/call:charge#3=panic")?;
    let system = System::builder().tool(Charge(book.clone())).faults(faults).start().await?;
    let answer = with_client(&system, async |client| client.call("charge", json!({"cents": 500})).await).await?;
    let session = system.open_session(Client::new("embedding")).await?;
    let mut heard = Vec::new();
    let (said, hearing) = std::sync::mpsc::channel();
    let reply = session
        .call("charge", json!({"cents": 500}))
        .on_progress(move |value, _| {
            let _ = said.send(value);
        })
        .await?;
    heard.extend(hearing.try_iter());
    let refused = session.call("no_such_tool", json!({})).await;
    in_order(system).await?;
    if book.bookings() != [1, 1]
        || !answer.to_string().contains("worker 2")
        || !format!("{reply:?}").contains("worker 3")
    {
        return Err(format!("{:?}: {answer}, {reply:?}", book.bookings()).into());
    }
    if heard.is_empty() || refused.is_ok() {
        return Err(format!("progress {heard:?}, an unknown tool: {refused:?}").into());
    }
    Ok(())
}

pub async fn a_tool_that_ends_its_process_costs_its_call(world: &World) -> Result<(), Problem> {
    let isolation = Isolation::Process(WorkerCommand::own_program());
    let system = System::builder().program(&world.registry).isolation(isolation).start().await?;
    let session = system.open_session(Client::new("embedding")).await?;
    let lost = session.call("abort", json!({})).await.err().ok_or("its process ended, and it was answered")?;
    if lost.generation.is_none() {
        return Err(lost.into());
    }
    // The connection is still there, and so is this process.
    let again = session.call("abort", json!({})).await.err().ok_or("its process ended, and it was answered")?;
    if again.generation <= lost.generation {
        return Err(format!("{lost:?}, then {again:?}").into());
    }
    in_order(system).await
}

pub async fn whoever_connects_to_a_socket_is_served(world: &World) -> Result<(), Problem> {
    let system = System::builder().tool(Charge(Book::default())).start().await?;
    let listening = system.listen(world.states.join("socket"))?;
    for cents in 0..3 {
        let mut client = McpClient::greeting(UnixStream::connect(listening.path()).await?).await?;
        let answer = client.call("charge", json!({"cents": cents})).await?;
        if answer["result"]["isError"] == true {
            return Err(answer.to_string().into());
        }
    }
    let path = listening.path().to_owned();
    in_order(system).await?;
    if path.exists() { Err("the socket is still there".into()) } else { Ok(()) }
}

/// Calls in a row and how long the slowest took.
async fn calls(system: &System, many: usize) -> Result<Duration, Problem> {
    with_client(system, async |client| {
        let mut slowest = Duration::ZERO;
        for cents in 0..many {
            let asked = Instant::now();
            let answer = client.call("charge", json!({"cents": cents})).await?;
            if answer["result"]["isError"] == true {
                return Err(answer.to_string().into());
            }
            slowest = slowest.max(asked.elapsed());
        }
        Ok(slowest)
    })
    .await
}

pub async fn one_systems_crashes_are_not_the_others() -> Result<(), Problem> {
    let crashing = System::builder()
        .tool(Charge(Book::default()))
        .faults(Faults::armed("worker.before_reply@tools/call:charge#*=panic")?)
        .start()
        .await?;
    let book = Book::default();
    let calm = System::builder().tool(Charge(book.clone())).start().await?;
    let alone = calls(&calm, 200).await?;
    let trouble = tokio::spawn({
        let crashing = crashing.clone();
        async move { with_client(&crashing, async |client| client.call("charge", json!({"cents": 1})).await).await }
    });
    let beside = calls(&calm, 200).await?;
    println!("slowest of 200 calls: {alone:?} alone, {beside:?} beside a system that crashes");
    let lost = trouble.await??;
    if lost["result"]["isError"] != true {
        return Err(format!("every worker crashed, and the call was answered: {lost}").into());
    }
    in_order(crashing).await?;
    in_order(calm).await?;
    if book.bookings() == vec![1; 400] { Ok(()) } else { Err(format!("{} bookings", book.bookings().len()).into()) }
}

pub async fn the_last_handle_ends_everything(world: &World) -> Result<(), Problem> {
    let system = consulting(world, "dropped").await?;
    let root = system.actor();
    let session = session(&system, world).await?;
    session.consult(question()).await?;
    drop(system);
    // A session is a handle as well.
    session.consult(question()).await?;
    drop(session);
    tokio::time::timeout(PATIENCE, root.wait(None)).await??;
    Ok(())
}

pub async fn systems_come_and_go(world: &World, rounds: usize) -> Result<(), Problem> {
    let mut first: Option<Surroundings> = None;
    for round in 0..rounds {
        let system = consulting(world, "rounds").await?;
        let session = session(&system, world).await?;
        session.consult(question()).await?;
        drop(session);
        let down = system.clone();
        in_order(system).await?;
        if !matches!(down.down().await, Down::Stopped) {
            return Err("it was stopped, and says otherwise".into());
        }
        // The runtime starts the threads it blocks in when it likes; what else there is, is there from the first round on.
        let now = Surroundings::now()?.without("threads");
        match &first {
            None => first = Some(now),
            Some(first) => first.same_as(&now).map_err(|problem| format!("after round {round}: {problem}"))?,
        }
    }
    Ok(())
}
