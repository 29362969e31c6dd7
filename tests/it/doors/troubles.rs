//! What a door can run into: crashes of its own, a socket that is taken away, a system that stops, many clients at once.
//!
//! Laws: L8, L9, L14, L18.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use phone_opus::internals::daemon::control;
use phone_opus::internals::daemon::listener::Listener;
use phone_opus::internals::failpoints::{Ends, FaultCounters, FaultPlan, Faults};
use phone_opus::internals::system::System;
use phone_opus::testkit::until;
use serde_json::Value;

use super::kit::{House, LineClient};

fn faults(plan: &str) -> Faults {
    let plan = FaultPlan::parse(plan, 0).expect("a plan");
    Faults::arm(plan, Ends::Nothing, FaultCounters::Memory).expect("armed")
}

#[tokio::test]
async fn a_door_that_crashes_loses_no_connection_and_no_client() {
    for (plan, served) in [
        ("unix.accept#2=panic", true),
        ("unix.accept#2=delay:50", true),
        ("unix.accept#2=hang", true),
        ("unix.accept#2=error", false),
        ("unix.accept#2=drop", false),
    ] {
        let faults = faults(plan);
        let house = House::of(System::builder().faults(faults.clone())).await;
        let mut first = house.connect().await;
        first.ping().await;
        // All three stand at the door when it fails.
        let (mut second, mut third) = (house.connect().await, house.connect().await);
        third.ping().await;
        if served {
            second.ping().await;
        } else {
            let said = second.next().await;
            assert_eq!(said.is_some(), plan.ends_with("error"), "{plan}: {said:?}");
            assert!(said.is_none_or(|said| said["to"] == "connect"), "{plan}");
        }
        first.ping().await;
        assert_eq!(faults.fired().len(), 1, "{plan}");
        house.has(if served { 3 } else { 2 }).await;
        drop((first, second, third));
        house.has(0).await;
        house.stop().await;
    }
}

#[tokio::test]
async fn the_parts_before_the_doors_may_fail_and_no_client_is_lost() {
    for plan in ["sessions.supervise@opened#2=panic", "sessions.supervise@opened#3=hang"] {
        let house = House::of(System::builder().faults(faults(plan))).await;
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = house.connect().await;
            client.ping().await;
            clients.push(client);
        }
        for client in &mut clients {
            client.ping().await;
        }
        drop(clients);
        house.stop().await;
    }
}

#[tokio::test]
async fn a_door_that_is_closed_answers_who_waits_and_keeps_who_is_in() {
    let house = House::new().await;
    let mut inside = house.connect().await;
    inside.hello().await;
    // Nobody has a turn between the connects and the closing: they stand at the door.
    let mut waiting: Vec<LineClient> = Vec::new();
    for _ in 0..20 {
        let stream = std::os::unix::net::UnixStream::connect(&house.path).expect("it listens");
        std::io::Write::write_all(&mut &stream, b"{\"type\":\"hello\"}\n").expect("it is taken");
        stream.set_nonblocking(true).expect("a stream");
        waiting.push(LineClient::over(tokio::net::UnixStream::from_std(stream).expect("a stream")));
    }
    house.door.close_with(control::restarting()).await;
    for client in &mut waiting {
        assert_eq!(client.said().await["type"], "restarting");
        assert_eq!(client.next().await, None);
    }
    assert!(tokio::net::UnixStream::connect(&house.path).await.is_err(), "nobody listens any more");
    house.door.closed().await;
    inside.ping().await;
    house.has(1).await;
    inside.finish().await;
    house.stop().await;
}

#[tokio::test]
async fn a_socket_that_was_taken_away_is_made_again_and_nobody_is_lost() {
    let house = House::new().await;
    let mut inside = house.connect().await;
    inside.ping().await;
    let waits = std::os::unix::net::UnixStream::connect(&house.path).expect("it listens");
    std::fs::remove_file(&house.path).expect("it was there");
    let again = Listener::bind(&house.path).expect("it listens again");
    house.door.replace(again);
    waits.set_nonblocking(true).expect("a stream");
    let mut waited = LineClient::over(tokio::net::UnixStream::from_std(waits).expect("a stream"));
    let mut new = house.connect().await;
    for client in [&mut waited, &mut new, &mut inside] {
        client.ping().await;
    }
    house.has(3).await;
    drop((inside, waited, new));
    house.stop().await;
}

#[tokio::test]
async fn a_system_that_stops_answers_what_is_open_and_tells_who_waits() {
    let house = House::new().await;
    let mut inside = house.connect().await;
    inside.line(r#"{"type":"status"}"#).await;
    inside.ping().await;
    let mut ended = inside;
    let (path, system, door) = (house.path.clone(), house.system.clone(), house.door.clone());
    let stream = std::os::unix::net::UnixStream::connect(&path).expect("it listens");
    let stop = system.shutdown(phone_opus::internals::system::Grace::default());
    stop.await;
    stream.set_nonblocking(true).expect("a stream");
    let mut waits = LineClient::over(tokio::net::UnixStream::from_std(stream).expect("a stream"));
    // It may have been let in just before: then it is told by the end of its connection.
    let said = waits.next().await;
    assert!(said.is_none_or(|said: Value| said["type"] == "restarting"));
    assert_eq!(ended.next().await, None, "a question nobody answered goes with its connection");
    door.closed().await;
    until("nobody is connected", async || (*door.connections().borrow() == 0).then_some(())).await;
    house.stop().await;
}

#[tokio::test]
async fn a_hundred_clients_at_once_have_a_session_each() {
    let house = House::new().await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(house.connect().await);
    }
    let mut sessions = std::collections::BTreeSet::new();
    for client in &mut clients {
        assert!(sessions.insert(client.hello().await), "two clients in one session");
    }
    house.has(100).await;
    drop(clients);
    house.has(0).await;
    house.stop().await;
}
