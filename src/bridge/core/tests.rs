//! The rules of a bridge, by tables and by everything that could happen around one.
//!
//! Laws: L1, L2, L3, L9, L18.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::calls::SENDS;
use super::search::ANSWER;
use super::*;
use crate::base::ids::DaemonId;
use crate::daemon::control;
use crate::protocol::catalog::{Annotations, CallRoom, Catalog, Define, ToolDefinition};
use crate::protocol::envelope;
use crate::protocol::session::SessionLimits;

/// Twice is once; safe with a key; never again.
const TOOLS: [(&str, ReplayContract); 3] = [
    ("look", ReplayContract::Convergent),
    ("consult", ReplayContract::ProbeRequired),
    ("act", ReplayContract::NeverReplay),
];

const OWN: &str = "bridge-of-a-test-";

fn catalog() -> Catalog {
    let entry = |(name, _): (&str, ReplayContract)| {
        let name = name.to_owned();
        let define: Define = Arc::new({
            let name = name.clone();
            move || ToolDefinition {
                name: name.clone(),
                title: String::new(),
                description: String::new(),
                input_schema: json!({"type": "object"}),
                annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
                meta: None,
            }
        });
        (name, CallRoom::Shared, define)
    };
    Catalog::new(TOOLS.map(entry).into())
}

fn setup() -> BridgeSetup {
    let identity = Arc::new(Identity::new("phone-opus", "1.0.0", ""));
    let mut keys = 0;
    BridgeSetup {
        local: SessionCore::new(Arc::new(catalog()), Arc::clone(&identity), SessionLimits::default()),
        identity,
        contracts: TOOLS.map(|(name, contract)| (name.to_owned(), contract)).into(),
        opening: Bytes::from_static(b"{\"type\":\"session_open\"}"),
        own: OWN.to_owned(),
        key: Box::new(move || {
            keys += 1;
            format!("key-{keys}")
        }),
        wait: Box::new(|client| Duration::from_secs(if client == Some("t") { 50 } else { 10 })),
    }
}

/// A bridge, and what it did.
struct Rig {
    core: BridgeCore,
    now: Instant,
    out: BytesMut,
    effects: Vec<BridgeEffect>,
    links: u64,
}

impl Rig {
    /// One that has begun.
    fn new() -> Self {
        let now = Instant::now();
        let core = BridgeCore::new(setup(), "1.0.0", now);
        let mut rig = Self { core, now, out: BytesMut::new(), effects: Vec::new(), links: 0 };
        rig.step(BridgeEvent::Begun);
        assert_eq!(rig.did(), [BridgeEffect::Reach]);
        rig
    }

    fn step(&mut self, event: BridgeEvent) {
        self.core.step(event, self.now, &mut self.out, &mut self.effects);
        self.core.invariant_what_is_held_is_bounded().expect("bounded");
    }

    fn did(&mut self) -> Vec<BridgeEffect> {
        std::mem::take(&mut self.effects)
    }

    fn client(&mut self, line: &str) {
        self.step(BridgeEvent::Client(Frame::Line(Bytes::copy_from_slice(line.as_bytes()))));
    }

    fn line(&mut self, link: LinkNumber, line: &str) {
        self.step(BridgeEvent::Line(link, Frame::Line(Bytes::copy_from_slice(line.as_bytes()))));
    }

    fn link(&mut self) -> LinkNumber {
        self.links += 1;
        LinkNumber(self.links)
    }

    /// The lines its client was sent since the last look.
    fn told(&mut self) -> Vec<String> {
        let out = self.out.split();
        std::str::from_utf8(&out).expect("UTF-8").lines().map(str::to_owned).collect()
    }

    /// The lines a connection was sent, one after the other, until there is none.
    fn sent(&mut self, link: LinkNumber) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let before = self.effects.len();
            self.step(BridgeEvent::Room(link));
            if self.effects.len() == before {
                break;
            }
        }
        self.effects.retain(|effect| match effect {
            BridgeEffect::Send(to, line) if *to == link => {
                lines.extend(std::str::from_utf8(line).expect("UTF-8").lines().map(str::to_owned));
                false
            }
            _ => true,
        });
        lines
    }

    /// Somebody is reached and opens the session.
    fn served(&mut self) -> LinkNumber {
        let link = self.link();
        self.step(BridgeEvent::Reached(Reach::There(link)));
        let catalog = self.core.setup.local.catalog().digest();
        self.opened(link, &format!("{catalog:016x}"));
        link
    }

    fn opened(&mut self, link: LinkNumber, catalog: &str) {
        assert!(self.did().contains(&BridgeEffect::Send(link, Bytes::from_static(b"{\"type\":\"session_open\"}\n"))));
        self.line(link, &opened("1.0.0", catalog));
    }

    fn handshake(&mut self) {
        self.client(r#"{"jsonrpc":"2.0","id":"hi","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{}},"clientInfo":{"name":"t","version":"1"}}}"#);
        self.client(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        let told = self.told();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(r#""id":"hi""#) && told[0].contains(r#""protocolVersion":"2025-11-25""#), "{told:?}");
    }
}

fn opened(build: &str, catalog: &str) -> String {
    let generation = DaemonId::random();
    json!({"type": "session_opened", "proto": 1, "build": build, "generation": generation, "catalog": catalog, "resumed": false})
        .to_string()
}

fn call(id: &str, tool: &str, arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
    )
}

fn cancel(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#)
}

fn answer(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#)
}

/// The fault's code an answer carries.
fn code(line: &str) -> String {
    let line: Value = serde_json::from_str(line).expect("JSON");
    let found = [&line["error"]["data"]["code"], &line["result"]["structuredContent"]["fault"]["code"]];
    found.into_iter().find_map(Value::as_str).unwrap_or("none").to_owned()
}

#[test]
fn a_client_is_answered_before_there_is_anybody() {
    let mut rig = Rig::new();
    rig.handshake();
    for (line, expected) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#),
        (r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#, r#""name":"consult""#),
        (r#"{"jsonrpc":"2.0","id":3,"method":"prompts/list"}"#, "-32601"),
        (
            r#"{"jsonrpc":"2.0","id":4,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#,
            "supportedVersions",
        ),
        (r#"{"jsonrpc":"2.0","id":5}"#, "-32600"),
        ("nonsense", "-32700"),
        ("[]", "-32600"),
    ] {
        rig.client(line);
        let told = rig.told();
        assert!(told.len() == 1 && told[0].contains(expected), "{line}: {told:?}");
    }
    rig.client(&call("6", "look", "{}"));
    assert_eq!(rig.told(), [""; 0]);
}

#[test]
fn before_the_handshake_calls_are_refused_here() {
    let mut rig = Rig::new();
    rig.client(&call("1", "look", "{}"));
    let told = rig.told();
    assert_eq!((told.len(), code(&told[0])), (1, "not_initialized".to_owned()));
}

#[test]
fn whoever_serves_is_told_of_the_client_first_and_again_after_a_loss() {
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "look", "{}"));
    for life in 1..=2 {
        let link = rig.served();
        let sent = rig.sent(link);
        assert_eq!(sent.len(), 3, "{sent:?}");
        let hello: Value = serde_json::from_str(&sent[0]).expect("JSON");
        assert_eq!(hello["method"], "initialize");
        assert_eq!(hello["params"]["clientInfo"]["name"], "t");
        assert_eq!(hello["params"]["capabilities"], json!({"roots": {}}));
        assert!(sent[1].contains("notifications/initialized"));
        assert_eq!(sent[2], call("1", "look", "{}"));
        // Its answer is not the client's.
        rig.line(
            link,
            &format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{"protocolVersion":"2025-11-25"}}}}"#, hello["id"]),
        );
        assert_eq!((rig.told(), rig.did()), (Vec::new(), Vec::new()), "life {life}");
        if life == 1 {
            rig.step(BridgeEvent::Lost(link));
        } else {
            rig.line(link, &answer("1"));
            assert_eq!(rig.told(), [answer("1")]);
        }
    }
}

#[test]
fn the_version_that_was_agreed_upon_is_the_one_that_is_asked_for() {
    let mut rig = Rig::new();
    rig.client(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2026-07-28","x":1.50}}"#);
    rig.client(r#"{"jsonrpc":"2.0","id":2,"method":"initialize","params":{}}"#);
    assert_eq!(rig.told().len(), 2);
    let link = rig.served();
    let sent = rig.sent(link);
    assert!(sent.len() == 1 && sent[0].contains(r#""params":{"protocolVersion":"2025-11-25","x":1.50}"#), "{sent:?}");
}

#[test]
fn a_consult_gets_a_key_and_keeps_one_it_has() {
    let mut rig = Rig::new();
    rig.handshake();
    let link = rig.served();
    rig.sent(link);
    for (arguments, expected) in [
        (r#"{"prompt":"\u00e9"}"#, r#"{"prompt":"\u00e9","request_key":"key-1"}"#),
        (r#"{"request_key":"mine"}"#, r#"{"request_key":"mine"}"#),
        (r#"{"request_key":null}"#, r#"{"request_key":null,"request_key":"key-2"}"#),
        ("{}", r#"{"request_key":"key-3"}"#),
        // Refused by whoever serves, as it came.
        ("[]", "[]"),
        (r#"{"prompt":"#, r#"{"prompt":"#),
    ] {
        rig.client(&call("1", "consult", arguments));
        let sent = rig.sent(link);
        match sent.first() {
            Some(sent) => assert_eq!(*sent, call("1", "consult", expected)),
            None => assert!(rig.told()[0].contains("-32700")),
        }
        rig.line(link, &answer("1"));
        rig.told();
    }
    rig.client(&call("1", "look", r#"{"prompt":"x"}"#));
    assert_eq!(rig.sent(link), [call("1", "look", r#"{"prompt":"x"}"#)], "only a consult needs one");
}

#[test]
fn after_a_loss_each_call_is_sent_again_or_told_what_is_known() {
    let mut rig = Rig::new();
    rig.handshake();
    let link = rig.served();
    rig.sent(link);
    for (id, tool) in [("1", "look"), ("2", "consult"), ("3", "act"), ("4", "unheard_of")] {
        rig.client(&call(id, tool, "{}"));
    }
    rig.client(r#"{"jsonrpc":"2.0","id":5,"method":"tasks/get","params":{"taskId":"x"}}"#);
    assert_eq!(rig.sent(link).len(), 5);
    // It never left, so whatever it is, it is sent freely.
    rig.client(&call("6", "act", "{}"));
    rig.step(BridgeEvent::Lost(link));
    let told = rig.told();
    assert_eq!(told.iter().map(|line| code(line)).collect::<Vec<_>>(), ["outcome_unknown", "outcome_unknown"]);
    assert!(told[0].contains(r#""id":3,"#) && told[1].contains(r#""id":4,"#), "{told:?}");
    let link = rig.served();
    let again = rig.sent(link);
    let ids: Vec<Value> =
        again.iter().skip(2).map(|line| serde_json::from_str::<Value>(line).expect("JSON")["id"].clone()).collect();
    assert_eq!(ids, [json!(1), json!(2), json!(5), json!(6)]);
    assert!(again[3].contains(r#""request_key":"key-1""#), "with the same key: {again:?}");
    for id in ["1", "2", "5", "6"] {
        rig.line(link, &answer(id));
    }
    assert_eq!(rig.told().len(), 4);
}

#[test]
fn a_consult_that_is_sent_later_keeps_its_client_waiting_no_longer() {
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "consult", r#"{"prompt":"x"}"#));
    rig.client(&call("2", "consult", r#"{"prompt":"x","wait_s":7}"#));
    rig.client(&call("3", "consult", r#"{"prompt":"x","background":true}"#));
    rig.client(&call("4", "look", "{}"));
    rig.now += Duration::from_secs(5);
    let link = rig.served();
    let waits: Vec<Value> = rig.sent(link)[2..]
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["params"]["arguments"]["wait_s"].clone())
        .collect();
    assert_eq!(waits, [json!(45), json!(2), Value::Null, Value::Null]);
}

#[test]
fn a_call_that_ends_whoever_has_it_is_not_sent_for_ever() {
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "consult", "{}"));
    for life in 1..=SENDS {
        let link = rig.served();
        assert_eq!(rig.sent(link).len(), 3, "life {life}");
        assert!(rig.told().is_empty());
        rig.now += Duration::from_secs(60);
        rig.step(BridgeEvent::Lost(link));
    }
    let told = rig.told();
    assert_eq!((told.len(), code(&told[0])), (1, "replay_exhausted".to_owned()));
}

#[test]
fn what_a_daemon_refuses_because_it_ends_its_successor_takes() {
    for refusal in [
        r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"stopping: this daemon is ending. Ask again."}],"isError":true}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-31999,"message":"x","data":{"class":"process","code":"stopping"}}}"#,
    ] {
        let mut rig = Rig::new();
        rig.handshake();
        let first = rig.served();
        rig.client(&call("0", "look", "{}"));
        rig.sent(first);
        rig.client(&call("1", "consult", "{}"));
        rig.sent(first);
        rig.line(first, refusal);
        assert_eq!((rig.told(), rig.did()), (Vec::new(), vec![BridgeEffect::Reach]));
        let second = rig.served();
        let sent = rig.sent(second);
        assert!(sent.len() == 3 && sent[2].contains("key-1"), "{sent:?}");
        // The first one still answers what it has, and hears what is withdrawn.
        rig.client(&call("2", "look", "{}"));
        assert_eq!(rig.sent(second).len(), 1);
        rig.line(first, &answer("0"));
        rig.line(second, &answer("1"));
        assert_eq!(rig.told(), [answer("0"), answer("1")]);
        // An answer of one that does not have the call is nobody's.
        rig.line(first, &answer("2"));
        assert!(rig.told().is_empty());
        rig.step(BridgeEvent::Lost(first));
        rig.line(second, &answer("2"));
        assert_eq!((rig.told(), rig.did()), (vec![answer("2")], Vec::new()));
    }
}

#[test]
fn after_a_daemon_was_stopped_this_process_serves_until_somebody_starts_another() {
    let mut rig = Rig::new();
    rig.handshake();
    let daemon = rig.served();
    rig.client(&call("1", "consult", "{}"));
    rig.client(&call("2", "act", "{}"));
    rig.sent(daemon);
    rig.did();
    rig.line(daemon, &control::stopped());
    assert_eq!(rig.did(), [BridgeEffect::Reach], "another one may be there");
    rig.step(BridgeEvent::Reached(Reach::Absent));
    let hosts = rig.did();
    assert!(matches!(&hosts[..], [BridgeEffect::Note(_), BridgeEffect::HostHere(_)]), "{hosts:?}");
    let own = rig.link();
    rig.step(BridgeEvent::Hosted(Ok(own)));
    assert!(rig.sent(own).iter().all(|line| !line.contains("consult")), "it is answered where it was sent");
    // What it still answers is the client's, and what it does not goes out again where it may.
    rig.line(daemon, &answer("2"));
    rig.step(BridgeEvent::Lost(daemon));
    assert!(rig.told().concat().contains(r#""id":2"#));
    let again = rig.sent(own);
    assert!(again.len() == 1 && again[0].contains(r#""request_key":"key-1""#), "{again:?}");
    // Somebody starts one, and the client asks for something.
    rig.did();
    rig.now += Duration::from_secs(1);
    rig.client(&call("3", "look", "{}"));
    assert_eq!(rig.did(), [BridgeEffect::Peek]);
    assert_eq!(rig.sent(own).len(), 1, "it waits for nobody");
    let next = rig.link();
    rig.step(BridgeEvent::Peeked(Reach::There(next)));
    let catalog = format!("{:016x}", rig.core.setup.local.catalog().digest());
    rig.opened(next, &catalog);
    rig.did();
    rig.client(&call("4", "look", "{}"));
    assert!(rig.sent(next).iter().any(|line| line.contains(r#""id":4"#)));
    rig.line(own, &answer("3"));
    assert_eq!(rig.did(), [], "it has a consult");
    rig.line(own, &answer("1"));
    assert_eq!(rig.did(), [BridgeEffect::Close(own)], "once it has answered all it had");
    // One that comes when it is not wanted any more is let go of.
    let late = rig.link();
    rig.step(BridgeEvent::Peeked(Reach::There(late)));
    assert_eq!(rig.did(), [BridgeEffect::Close(late)]);
    // The next one is lost, not stopped.
    rig.step(BridgeEvent::Lost(next));
    rig.step(BridgeEvent::Reached(Reach::Absent));
    assert_eq!(rig.did(), [BridgeEffect::Reach, BridgeEffect::Start]);
}

#[test]
fn a_call_withdrawn_from_one_that_leaves_is_withdrawn_there() {
    let mut rig = Rig::new();
    rig.handshake();
    let first = rig.served();
    rig.client(&call("0", "act", "{}"));
    rig.client(&call("1", "look", "{}"));
    rig.sent(first);
    rig.line(
        first,
        r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"stopping: x"}],"isError":true}}"#,
    );
    rig.did();
    rig.client(&cancel("0"));
    let did = rig.did();
    let [BridgeEffect::Send(to, withdrawn), BridgeEffect::Send(_, ping)] = &did[..] else { panic!("{did:?}") };
    assert_eq!((*to, &withdrawn[..]), (first, format!("{}\n", cancel("0")).as_bytes()));
    assert!(ping.starts_with(b"{\"jsonrpc\":\"2.0\",\"id\":\"bridge-of-a-test-"), "{ping:?}");
}

#[test]
fn a_call_withdrawn_just_before_its_daemon_leaves_is_withdrawn_there_and_its_id_is_free() {
    let mut rig = Rig::new();
    rig.handshake();
    let first = rig.served();
    rig.client(&call("1", "look", "{}"));
    rig.client(&call("2", "look", "{}"));
    rig.sent(first);
    rig.client(&cancel("1"));
    rig.line(
        first,
        r#"{"jsonrpc":"2.0","id":2,"result":{"content":[{"type":"text","text":"stopping: x"}],"isError":true}}"#,
    );
    let did = rig.did();
    let [BridgeEffect::Send(_, withdrawn), BridgeEffect::Send(to, ping), BridgeEffect::Reach] = &did[..] else {
        panic!("{did:?}")
    };
    assert_eq!((*to, &withdrawn[..]), (first, format!("{}\n", cancel("1")).as_bytes()));
    let ping: Value = serde_json::from_slice(ping).expect("JSON");
    rig.client(&call("1", "look", "{}"));
    rig.line(first, &format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, ping["id"]));
    let second = rig.served();
    assert_eq!(rig.sent(second).len(), 4, "both, and who asks");
}

#[test]
fn a_withdrawn_call_is_not_answered_also_when_its_id_is_used_again() {
    let mut rig = Rig::new();
    rig.handshake();
    let link = rig.served();
    rig.client(&call("1", "look", "{}"));
    rig.sent(link);
    rig.client(&cancel("1"));
    let sent = rig.sent(link);
    assert_eq!((sent.len(), &sent[0]), (2, &cancel("1")));
    let ping: Value = serde_json::from_str(&sent[1]).expect("JSON");
    // The same id again, while an answer to the first may be under way: it waits, and others pass it.
    rig.client(&call("1", "look", r#"{"second":1}"#));
    rig.client(&call("2", "look", "{}"));
    assert_eq!(rig.sent(link), [call("2", "look", "{}")]);
    rig.line(link, &answer("1"));
    assert!(rig.told().is_empty(), "the first one's answer");
    rig.line(link, &format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, ping["id"]));
    assert_eq!(rig.sent(link), [call("1", "look", r#"{"second":1}"#)]);
    rig.line(link, &answer("1"));
    assert_eq!(rig.told(), [answer("1")]);
    // One that never left is withdrawn here alone.
    rig.client(&call("3", "look", "{}"));
    rig.client(&cancel("3"));
    assert_eq!(rig.sent(link), [""; 0]);
}

#[test]
fn an_id_in_flight_is_refused_to_a_newcomer_and_answered_as_it_was_written() {
    let mut rig = Rig::new();
    rig.handshake();
    let link = rig.served();
    rig.client(&call("1.0", "look", "{}"));
    rig.client(&call("1", "look", "{}"));
    rig.client(r#"{"jsonrpc":"2.0","id":1e0,"method":"ping"}"#);
    let told = rig.told();
    assert_eq!(told.iter().map(|line| code(line)).collect::<Vec<_>>(), ["invalid_request"; 2]);
    rig.sent(link);
    // Whoever serves writes it another way; its client does not know that one.
    rig.line(link, r#"{"jsonrpc":"2.0","result":{},"id":1}"#);
    assert_eq!(rig.told(), [r#"{"jsonrpc":"2.0","result":{},"id":1.0}"#]);
}

#[test]
fn a_batch_is_answered_with_one_line_whoever_answers_its_members() {
    let mut rig = Rig::new();
    rig.client(r#"{"jsonrpc":"2.0","id":"hi","method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{}}}"#);
    rig.told();
    let link = rig.served();
    rig.sent(link);
    let batch = |members: &[&str]| format!("[{}]", members.join(","));
    let (one, two) = (call("1", "look", "{}"), call("2", "act", "{}"));
    let initialize = r#"{"jsonrpc":"2.0","id":4,"method":"initialize","params":{}}"#;
    let ping = r#"{"jsonrpc":"2.0","id":3,"method":"ping"}"#;
    rig.client(&batch(&[&one, ping, &two, initialize, "7", r#"{"jsonrpc":"2.0","method":"notifications/x"}"#]));
    assert!(rig.told().is_empty());
    assert_eq!(rig.sent(link), [one.clone(), two]);
    rig.line(link, &answer("1"));
    assert!(rig.told().is_empty());
    rig.step(BridgeEvent::Lost(link));
    let told = rig.told();
    assert_eq!(told.len(), 1, "{told:?}");
    let members: Vec<Value> = serde_json::from_str(&told[0]).expect("an array");
    let ids: Vec<&Value> = members.iter().map(|member| &member["id"]).collect();
    assert_eq!(ids, [&json!(3), &json!(4), &Value::Null, &json!(1), &json!(2)]);
    // All members withdrawn, or none a request: no line at all.
    rig.client(&batch(&[&one]));
    rig.client(&cancel("1"));
    rig.client(&batch(&[r#"{"jsonrpc":"2.0","method":"notifications/x"}"#]));
    assert!(rig.told().is_empty());
}

#[test]
fn other_tools_are_told_of_once_and_listed_there_from_then_on() {
    let mut rig = Rig::new();
    rig.handshake();
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    rig.client(list);
    assert_eq!(rig.told().len(), 1);
    let link = rig.link();
    rig.step(BridgeEvent::Reached(Reach::There(link)));
    rig.opened(link, "00000000000000aa");
    assert_eq!(rig.told(), [r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#]);
    rig.sent(link);
    rig.client(list);
    assert_eq!(rig.sent(link), [list]);
    rig.line(link, &answer("1"));
    assert_eq!(rig.told(), [answer("1")]);
    // The next one has the same: nothing to tell. Then one has ours again.
    rig.step(BridgeEvent::Lost(link));
    let link = rig.link();
    rig.step(BridgeEvent::Reached(Reach::There(link)));
    rig.opened(link, "00000000000000aa");
    assert!(rig.told().is_empty());
    rig.step(BridgeEvent::Lost(link));
    rig.served();
    assert_eq!(rig.told().len(), 1);
    rig.client(list);
    assert!(rig.told()[0].contains("consult"));
}

#[test]
fn a_subscription_outlives_whoever_serves_and_is_acknowledged_once() {
    let envelope = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    let listen = format!(
        r#"{{"jsonrpc":"2.0","id":"s","method":"subscriptions/listen","params":{{"notifications":{{"toolsListChanged":true}},{envelope}}}}}"#
    );
    let about = |method: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/{method}","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":"s"}}}}}}"#
        )
    };
    let mut rig = Rig::new();
    rig.client(&listen);
    rig.client(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{{envelope}}}}}"#));
    rig.told();
    for life in 1..=2 {
        let link = rig.served();
        assert_eq!(rig.sent(link), std::slice::from_ref(&listen));
        rig.line(link, &about("subscriptions/acknowledged"));
        assert_eq!(rig.told().len(), usize::from(life == 1), "life {life}");
        rig.line(link, &about("tasks"));
        assert_eq!(rig.told(), [about("tasks")]);
        // It says good-bye to its client, which is not this one.
        rig.line(link, r#"{"jsonrpc":"2.0","id":"s","result":{"resultType":"complete"}}"#);
        rig.step(BridgeEvent::Lost(link));
        assert!(rig.told().is_empty());
    }
    // The next one has other tools: the subscription hears of it.
    let link = rig.link();
    rig.step(BridgeEvent::Reached(Reach::There(link)));
    rig.opened(link, "00000000000000aa");
    let told = rig.told();
    assert!(told.len() == 1 && told[0].contains("list_changed") && told[0].contains(r#""s""#), "{told:?}");
    // Its client ends it.
    rig.sent(link);
    rig.client(&cancel("\"s\""));
    assert_eq!(rig.sent(link).first(), Some(&cancel("\"s\"")));
    rig.step(BridgeEvent::Lost(link));
    let link = rig.served();
    assert_eq!(rig.sent(link), [""; 0]);
}

#[test]
fn questions_of_two_daemons_are_two_questions() {
    let question = r#"{"jsonrpc":"2.0","id":"phone-opus-roots-1","method":"roots/list"}"#;
    let mut rig = Rig::new();
    rig.handshake();
    let mut ids = Vec::new();
    let mut links = Vec::new();
    for _ in 0..2 {
        let link = rig.served();
        rig.sent(link);
        rig.line(link, question);
        let told = rig.told();
        let asked: Value = serde_json::from_str(&told[0]).expect("JSON");
        assert_eq!(asked["method"], "roots/list");
        ids.push(asked["id"].clone());
        links.push(link);
        if links.len() == 1 {
            rig.step(BridgeEvent::Lost(link));
        }
    }
    assert_ne!(ids[0], ids[1]);
    rig.client(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{"roots":[]}}}}"#, ids[0]));
    assert_eq!(rig.sent(links[1]), [""; 0], "the one who asked is gone");
    rig.client(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{"roots":[1.0]}}}}"#, ids[1]));
    assert_eq!(rig.sent(links[1]), [r#"{"jsonrpc":"2.0","id":"phone-opus-roots-1","result":{"roots":[1.0]}}"#]);
    rig.client(&format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{}}}}"#, ids[1]));
    assert_eq!(rig.sent(links[1]), [""; 0], "answered once");
}

#[test]
fn progress_rises_also_over_a_loss() {
    let progress = |value: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":"p","progress":{value}}}}}"#
        )
    };
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"look","arguments":{},"_meta":{"progressToken":"p"}}}"#);
    let link = rig.served();
    rig.sent(link);
    for value in ["5", "10.5"] {
        rig.line(link, &progress(value));
        assert_eq!(rig.told(), [progress(value)]);
    }
    rig.step(BridgeEvent::Lost(link));
    let link = rig.served();
    rig.sent(link);
    for (value, told) in [("5", false), ("10.5", false), ("11", true)] {
        rig.line(link, &progress(value));
        assert_eq!(!rig.told().is_empty(), told, "{value}");
    }
    rig.line(link, &answer("1"));
    rig.told();
    // A task's outlives its call.
    rig.line(link, &progress("1"));
    assert_eq!(rig.told(), [progress("1")]);
}

#[test]
fn without_a_daemon_this_process_serves_and_says_why() {
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "look", "{}"));
    rig.step(BridgeEvent::Reached(Reach::Denied("connections are denied.".to_owned())));
    let why = "connections are denied.".to_owned();
    assert_eq!(rig.did(), [BridgeEffect::Note(format!("serving in this process: {why}")), BridgeEffect::HostHere(why)]);
    let link = rig.link();
    rig.step(BridgeEvent::Hosted(Ok(link)));
    assert_eq!(rig.sent(link).len(), 3, "without session_open");
    rig.line(link, &answer("1"));
    assert_eq!(rig.told(), [answer("1")]);
}

#[test]
fn when_nobody_can_serve_calls_are_told_so_and_the_next_one_tries_again() {
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "look", "{}"));
    rig.client(r#"{"jsonrpc":"2.0","id":2,"method":"tasks/get","params":{"taskId":"x"}}"#);
    rig.step(BridgeEvent::Reached(Reach::Denied("no.".to_owned())));
    rig.step(BridgeEvent::Hosted(Err("no room.".to_owned())));
    let told = rig.told();
    assert_eq!(told.iter().map(|line| code(line)).collect::<Vec<_>>(), ["stopping"; 2]);
    rig.did();
    rig.client(r#"{"jsonrpc":"2.0","id":3,"method":"ping"}"#);
    assert_eq!(rig.told().len(), 1);
    rig.client(&call("4", "look", "{}"));
    assert_eq!(rig.did(), [BridgeEffect::Reach]);
}

#[test]
fn what_waits_for_somebody_is_bounded_and_refused_beyond() {
    let mut rig = Rig::new();
    rig.handshake();
    for id in 0..300 {
        rig.client(&call(&id.to_string(), "look", "{}"));
    }
    let told = rig.told();
    assert_eq!(told.len(), 300 - 256);
    assert!(told.iter().all(|line| code(line) == "busy"));
    let link = rig.served();
    assert_eq!(rig.sent(link).len(), 256 + 2);
}

#[test]
fn a_client_that_ends_gets_what_it_asked_for_and_nobody_waits_for_ever() {
    // Nothing is asked: at once.
    let mut rig = Rig::new();
    rig.step(BridgeEvent::ClientEnded);
    assert_eq!(rig.did(), [BridgeEffect::End]);
    // Something is: its answer first.
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "look", "{}"));
    rig.step(BridgeEvent::ClientEnded);
    let link = rig.served();
    assert_eq!(rig.sent(link).len(), 3);
    assert_eq!(rig.did(), [BridgeEffect::EndInput(link)]);
    rig.line(link, &answer("1"));
    assert_eq!((rig.told(), rig.did()), (vec![answer("1")], vec![BridgeEffect::End]));
    // Whoever serves lets go of it: nobody else is looked for.
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "consult", "{}"));
    let link = rig.served();
    rig.sent(link);
    rig.step(BridgeEvent::ClientEnded);
    rig.step(BridgeEvent::Lost(link));
    assert_eq!(rig.did(), [BridgeEffect::EndInput(link), BridgeEffect::End]);
    // None comes.
    let mut rig = Rig::new();
    rig.handshake();
    rig.client(&call("1", "look", "{}"));
    rig.step(BridgeEvent::ClientEnded);
    assert_eq!(rig.core.wakes(), Some(rig.now + LINGER));
    rig.now += LINGER;
    rig.step(BridgeEvent::Woke);
    assert_eq!(rig.did(), [BridgeEffect::End]);
}

#[test]
fn what_comes_of_a_connection_that_was_left_changes_nothing() {
    let mut rig = Rig::new();
    rig.handshake();
    let link = rig.link();
    rig.step(BridgeEvent::Reached(Reach::There(link)));
    rig.did();
    rig.now += ANSWER;
    rig.step(BridgeEvent::Woke);
    assert_eq!(rig.did().first(), Some(&BridgeEffect::Close(link)));
    rig.line(link, &opened("1.0.0", "0"));
    rig.step(BridgeEvent::Lost(link));
    rig.step(BridgeEvent::Room(link));
    assert_eq!((rig.told(), rig.did()), (Vec::new(), Vec::new()));
}

/// A request of the model's client.
#[derive(Debug, Clone)]
struct Asked {
    id: String,
    number: u64,
    tool: &'static str,
}

/// A daemon that does what a session of ours does, with an answer under way while it is told that it is withdrawn.
#[derive(Debug, Default)]
struct Peer {
    open: Vec<(String, Option<u64>)>,
    under_way: VecDeque<String>,
}

impl Peer {
    fn hear(&mut self, line: &str) {
        let message: Value = serde_json::from_str(line).expect("JSON");
        let id = match envelope::object(line, ["id"]) {
            Ok([Some(id)]) => id.to_owned(),
            _ => String::new(),
        };
        match message["method"].as_str() {
            Some("ping" | "initialize") => {
                self.under_way
                    .push_back(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-11-25"}}}}"#));
            }
            Some("notifications/cancelled") => {
                let [params] = envelope::object(line, ["params"]).expect("an object");
                let [id] = envelope::object(params.expect("params"), ["requestId"]).expect("an object");
                let id = IdToken::from_json(id.expect("an id")).expect("an id");
                self.open.retain(|(open, _)| IdToken::from_json(open).expect("an id") != id);
            }
            Some("tools/call") => {
                assert!(
                    self.open.iter().all(|(open, _)| IdToken::from_json(open) != IdToken::from_json(&id)),
                    "a session refuses an id that is in flight: {line}"
                );
                self.open.push((id, message["params"]["arguments"]["n"].as_u64()));
            }
            _ => {}
        }
    }

    fn answer(&mut self, at: usize) {
        let (id, number) = self.open.swap_remove(at);
        self.under_way.push_back(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"n":{}}}}}"#, number.unwrap_or(0)));
    }

    fn refuse(&mut self, at: usize) {
        let (id, _) = self.open.swap_remove(at);
        self.under_way.push_back(format!(
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"stopping: x"}}],"isError":true}}}}"#
        ));
    }
}

/// Everything around a bridge, as it could happen.
struct Model {
    rig: Rig,
    random: fastrand::Rng,
    peers: BTreeMap<LinkNumber, Peer>,
    open: Vec<Asked>,
    numbers: u64,
    /// The lines by which each request left.
    left: BTreeMap<u64, Vec<String>>,
    reaching: bool,
    peeking: bool,
    starting: bool,
    hosting: bool,
    trace: Vec<String>,
}

/// Several ways to write three ids.
const IDS: [&str; 8] = ["1", "1.0", "\"a\"", r#""\u0061""#, "2", "\"2\"", "-3", "1e2"];

impl Model {
    fn new(seed: u64) -> Self {
        let mut rig = Rig::new();
        rig.handshake();
        Self {
            rig,
            random: fastrand::Rng::with_seed(seed),
            peers: BTreeMap::new(),
            open: Vec::new(),
            numbers: 0,
            left: BTreeMap::new(),
            reaching: true,
            peeking: false,
            starting: false,
            hosting: false,
            trace: Vec::new(),
        }
    }

    fn ask(&mut self) {
        let id = IDS[self.random.usize(..IDS.len())].to_owned();
        let (tool, _) = TOOLS[self.random.usize(..TOOLS.len())];
        self.numbers += 1;
        let asked = Asked { id, number: self.numbers, tool };
        self.trace.push(format!("{asked:?}"));
        let same = IdToken::from_json(&asked.id);
        let taken = self.open.iter().any(|open| IdToken::from_json(&open.id) == same);
        self.rig.client(&call(&asked.id, tool, &format!(r#"{{"n":{}}}"#, asked.number)));
        if taken {
            let told = self.rig.told();
            assert!(told.len() == 1 && code(&told[0]) == "invalid_request", "{told:?}");
        } else {
            self.open.push(asked);
        }
    }

    fn withdraw(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let asked = self.open.swap_remove(self.random.usize(..self.open.len()));
        self.trace.push(format!("withdraw {asked:?}"));
        self.rig.client(&cancel(&asked.id));
    }

    /// Answers of this step belong to who asked.
    fn look(&mut self) {
        for line in self.rig.told() {
            self.trace.push(format!("told {line}"));
            let message: Value = serde_json::from_str(&line).expect("JSON");
            if message.get("method").is_some() {
                continue;
            }
            let Ok([Some(id)]) = envelope::object(&line, ["id"]) else { panic!("no id: {line}") };
            let at = self.open.iter().position(|asked| asked.id == id);
            let asked = self.open.swap_remove(at.unwrap_or_else(|| panic!("nobody asked under {id}: {line}")));
            if let Some(number) = message["result"]["n"].as_u64() {
                assert_eq!(number, asked.number, "another request's answer: {line}");
            } else {
                let refused = line.contains("stopping: x") && asked.tool == "act";
                let known = ["outcome_unknown", "replay_exhausted", "stopping"].contains(&&code(&line)[..]);
                assert!(known || refused, "{line}");
            }
        }
        for effect in self.rig.did() {
            match effect {
                BridgeEffect::Send(link, bytes) => self.deliver(link, &bytes),
                BridgeEffect::Reach => self.reaching = true,
                BridgeEffect::Peek => self.peeking = true,
                BridgeEffect::Start => self.starting = true,
                BridgeEffect::HostHere(_) => self.hosting = true,
                BridgeEffect::Close(link) => drop(self.peers.remove(&link)),
                BridgeEffect::EndInput(_) | BridgeEffect::Note(_) => {}
                BridgeEffect::End => panic!("the client is there"),
            }
        }
    }

    fn deliver(&mut self, link: LinkNumber, bytes: &Bytes) {
        let text = std::str::from_utf8(bytes).expect("UTF-8");
        assert!(text.ends_with('\n'), "a whole line");
        for line in text.lines() {
            self.trace.push(format!("{link:?} {line}"));
            let message: Value = serde_json::from_str(line).expect("JSON");
            let peer = self.peers.get_mut(&link).expect("nobody speaks to one that is gone");
            if message["type"] == "session_open" {
                let catalog = self.rig.core.setup.local.catalog().digest();
                peer.under_way.push_back(opened("1.0.0", &format!("{catalog:016x}")));
                continue;
            }
            peer.hear(line);
            if message["method"] == "tools/call" {
                let number = message["params"]["arguments"]["n"].as_u64().expect("a number");
                // What is left of a wait differs from time to time.
                let said: String = match line.split_once(",\"wait_s\":") {
                    Some((before, after)) => {
                        format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
                    }
                    None => line.to_owned(),
                };
                self.left.entry(number).or_default().push(said);
            }
        }
    }

    fn some_link(&mut self) -> Option<LinkNumber> {
        let links: Vec<LinkNumber> = self.peers.keys().copied().collect();
        (!links.is_empty()).then(|| links[self.random.usize(..links.len())])
    }

    fn join(&mut self, make: impl FnOnce(LinkNumber) -> BridgeEvent) {
        let link = self.rig.link();
        self.peers.insert(link, Peer::default());
        self.rig.step(make(link));
    }

    /// What was asked of the world happens, or does not.
    fn settle(&mut self, kindly: bool) {
        if self.peeking && self.random.bool() {
            self.peeking = false;
            match self.random.bool() {
                true => self.rig.step(BridgeEvent::Peeked(Reach::Absent)),
                false => self.join(|link| BridgeEvent::Peeked(Reach::There(link))),
            }
            return;
        }
        if std::mem::take(&mut self.reaching) {
            match self.random.u8(..10) {
                0 if !kindly => self.rig.step(BridgeEvent::Reached(Reach::Denied("no.".to_owned()))),
                1..=3 if !kindly => self.rig.step(BridgeEvent::Reached(Reach::Absent)),
                _ => self.join(|link| BridgeEvent::Reached(Reach::There(link))),
            }
        } else if std::mem::take(&mut self.starting) {
            match self.random.bool() && !kindly {
                true => self.rig.step(BridgeEvent::Started(Err("no.".to_owned()))),
                false => self.join(|link| BridgeEvent::Started(Ok(link))),
            }
        } else if std::mem::take(&mut self.hosting) {
            match self.random.u8(..4) == 0 && !kindly {
                true => self.rig.step(BridgeEvent::Hosted(Err("no.".to_owned()))),
                false => self.join(|link| BridgeEvent::Hosted(Ok(link))),
            }
        }
    }

    fn peer_does(&mut self, kindly: bool) {
        let Some(link) = self.some_link() else { return };
        let peer = self.peers.get_mut(&link).expect("it is there");
        match self.random.u8(..12) {
            0..=3 if !peer.open.is_empty() => {
                let at = self.random.usize(..peer.open.len());
                peer.answer(at);
            }
            4 if !peer.open.is_empty() && !kindly => {
                let at = self.random.usize(..peer.open.len());
                peer.refuse(at);
            }
            5 if !kindly => {
                self.trace.push(format!("{link:?} is lost"));
                self.peers.remove(&link);
                self.rig.step(BridgeEvent::Lost(link));
            }
            6 if !kindly && self.random.bool() => peer.under_way.push_back(control::stopped()),
            6..=8 => self.rig.step(BridgeEvent::Room(link)),
            _ => {
                if let Some(line) = peer.under_way.pop_front() {
                    self.trace.push(format!("{link:?} says {line}"));
                    self.rig.line(link, &line);
                }
            }
        }
    }

    fn step(&mut self, kindly: bool) {
        match self.random.u8(..10) {
            0..=1 if !kindly => self.ask(),
            2 if !kindly => self.withdraw(),
            3 => self.settle(kindly),
            4 => {
                self.rig.now += Duration::from_millis(self.random.u64(..3000));
                self.rig.step(BridgeEvent::Woke);
            }
            _ => self.peer_does(kindly),
        }
        self.look();
    }

    fn run(&mut self) {
        for _ in 0..self.random.usize(20..400) {
            self.step(false);
        }
        // From here on nothing fails any more: whatever is open comes to its end.
        for _ in 0..20_000 {
            if self.open.is_empty() {
                break;
            }
            self.step(true);
        }
        assert!(self.open.is_empty(), "never answered: {:?}", self.open);
        for (number, lines) in &self.left {
            assert!(lines.iter().all(|line| line == &lines[0]), "{number} left in two ways: {lines:?}");
            assert!(lines.len() <= SENDS as usize, "{number}: {lines:?}");
            let never = lines[0].contains(r#""name":"act""#);
            assert!(!never || lines.len() == 1, "{number} left twice: {lines:?}");
        }
    }
}

#[test]
fn whatever_happens_each_request_is_answered_once_and_none_leaves_twice_that_may_not() {
    let first = std::env::var("PHONE_OPUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let (first, count) = first.map_or((0, 600), |seed: u64| (seed, 1));
    println!("seeds {first}..{}", first + count);
    for seed in first..first + count {
        let mut model = Model::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.run()));
        if run.is_err() {
            let shown = model.trace.len().saturating_sub(60);
            panic!("seed {seed}: the last steps were\n{}", model.trace[shown..].join("\n"));
        }
    }
}
