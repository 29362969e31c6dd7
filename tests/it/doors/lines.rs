//! What clients of a socket say that is wrong, half said, or beside JSON-RPC: each gets one clear line, and no other client
//! notices.
//!
//! Laws: L1, L9, L11, L14, L16.

use std::time::Duration;

use phone_opus::internals::system::System;
use serde_json::{Value, json};

use super::kit::House;

/// The word for an answer: its type and what it is about, or its code.
fn word(answer: &Value) -> String {
    match (answer["type"].as_str(), answer["to"].as_str()) {
        (Some(kind), Some(to)) => format!("{kind} {to}"),
        (Some(kind), None) => kind.to_owned(),
        (None, _) => answer["error"]["code"].as_i64().map_or_else(|| "ok".to_owned(), |code| code.to_string()),
    }
}

#[tokio::test]
async fn each_bad_line_gets_one_line_and_nobody_else_notices() {
    let house = House::of(System::builder().line_limit(256 * 1024)).await;
    let mut other = house.connect().await;
    other.ping().await;
    let long = format!(r#"{{"type":"hello","x":"{}"}}"#, "x".repeat(300 * 1024));
    let env = "x".repeat(35 * 1024);
    let crowded = format!(
        r#"{{"type":"session_open","proto":1,"session":"s","cwd":"/","env":{{"A":"{env}","B":"{}"}}}}"#,
        "y".repeat(35 * 1024)
    );
    let table: [(&str, &str); 21] = [
        ("no JSON", "-32700"),
        ("\u{0}", "-32700"),
        ("[", "-32700"),
        ("[]", "-32600"),
        ("7", "-32600"),
        ("null", "-32600"),
        ("{}", "-32600"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "-32600"),
        (r#"{"id":1,"method":"ping"}"#, "-32600"),
        (r#"{"type":"frobnicate"}"#, "-32600"),
        (r#"{"type":["hello"]}"#, "-32600"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"frobnicate"}"#, "-32601"),
        (&long, "-32600"),
        (r#"{"type":"shutdown","mode":7}"#, "error shutdown"),
        (r#"{"type":"session_open"}"#, "error session_open"),
        (r#"{"type":"session_open","proto":1,"session":"s","cwd":"."}"#, "error session_open"),
        (r#"{"type":"session_open","proto":1,"session":"s","cwd":"/refused"}"#, "error session_open"),
        (r#"{"type":"session_open","proto":1,"session":"s","cwd":"/","env":{"A":"\u0000"}}"#, "error session_open"),
        (r#"{"type":"session_open","proto":1,"session":"s","cwd":"/","env_b64":{"A":"?"}}"#, "error session_open"),
        (&crowded, "error session_open"),
        (r#"{"type":"pause"}"#, "error pause"),
    ];
    for (line, expected) in table {
        let mut client = house.connect().await;
        let answer = client.ask(line).await;
        let shown: String = line.chars().take(80).collect();
        // A line that is over the limit and names no id is told so before anything else was answered.
        assert_eq!(word(&answer), expected, "{shown}: {answer}");
        assert!(answer.to_string().len() < 2000, "{shown}: a clear line is short");
        client.ping().await;
        assert_eq!(client.finish().await, Vec::<Value>::new(), "{shown}: one line");
        other.ping().await;
    }
    other.finish().await;
    house.stop().await;
}

#[tokio::test]
async fn a_session_is_opened_once_before_its_first_call_and_after_a_refusal() {
    let house = House::new().await;
    let open = |cwd: &str| format!(r#"{{"type":"session_open","proto":1,"session":"s","cwd":"{cwd}"}}"#);
    let mut client = house.connect().await;
    // In one write: what follows waits for the answer.
    client.bytes(format!("{}\n{}\n", open("/refused"), open("/")).as_bytes()).await;
    assert_eq!(word(&client.said().await), "error session_open");
    assert_eq!(word(&client.said().await), "session_open");
    let again = client.ask(&open("/")).await;
    assert!(again["message"].as_str().is_some_and(|why| why.contains("open already")), "{again}");
    client.ping().await;
    let mut late = house.connect().await;
    let greeting =
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}});
    late.ask(&greeting.to_string()).await;
    let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "health_snapshot"}});
    assert_eq!(word(&late.ask(&call.to_string()).await), "ok");
    let refused = late.ask(&open("/")).await;
    assert!(refused["message"].as_str().is_some_and(|why| why.contains("first call")), "{refused}");
    assert_eq!(word(&late.ask(&call.to_string()).await), "ok");
    for client in [client, late] {
        client.finish().await;
    }
    house.stop().await;
}

#[tokio::test]
async fn control_messages_in_a_batch_are_refused_and_its_other_members_served() {
    let house = House::new().await;
    let mut client = house.connect().await;
    let greeting =
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-03-26"}});
    client.ask(&greeting.to_string()).await;
    let ping = |id: u64| json!({"jsonrpc": "2.0", "id": id, "method": "ping"});
    let batch = json!([ping(2), {"type": "shutdown", "mode": "force"}, ping(3)]);
    let answers = client.ask(&batch.to_string()).await;
    let answers = answers.as_array().expect("a batch");
    assert_eq!(answers.iter().map(word).collect::<Vec<_>>(), ["ok", "-32600", "ok"]);
    client.ping().await;
    client.finish().await;
    house.stop().await;
}

#[tokio::test]
async fn half_a_line_and_silence_holds_nobody_up() {
    let house = House::new().await;
    let mut half = house.connect().await;
    half.bytes(br#"{"type":"hel"#).await;
    let mut other = house.connect().await;
    for _ in 0..100 {
        other.ping().await;
    }
    assert!(half.is_silent(Duration::from_millis(20)).await);
    half.bytes(b"lo\"}").await;
    // The end of input ends the line.
    let rest = half.finish().await;
    assert_eq!(rest.iter().map(word).collect::<Vec<_>>(), ["hello"]);
    other.finish().await;
    house.stop().await;
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_questions_and_a_desk_that_panics_is_answered_for() {
    let house = House::new().await;
    let mut client = house.connect().await;
    client.line("{\"type\":\"status\"}\n{\"type\":\"hello\"}").await;
    client.ping().await;
    house.desk.answer_kept();
    assert_eq!(word(&client.said().await), "status");
    assert_eq!(word(&client.said().await), "hello");
    let mut other = house.connect().await;
    other.hello().await;
    assert_eq!(word(&client.ask(r#"{"type":"drain"}"#).await), "error drain");
    client.ping().await;
    other.ping().await;
    for client in [client, other] {
        client.finish().await;
    }
    house.stop().await;
}
