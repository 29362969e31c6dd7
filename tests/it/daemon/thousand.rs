//! Many sessions of one daemon through its upgrades, with consults under way: every id is answered once.
//!
//! `PHONE_OPUS_SESSIONS` and `PHONE_OPUS_CONSULTS` say how many (`.ci/long sessions`: 1000 and 50).
//!
//! Laws: L1, L3, L7, L9, L15.

use std::collections::BTreeMap;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

/// Images of the daemon after the first.
const UPGRADES: u64 = 2;

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A client, and how often each of its ids was answered.
struct Session {
    peer: Peer,
    answers: BTreeMap<u64, usize>,
}

impl Session {
    async fn send_ping(&mut self, id: u64) {
        self.peer.say(&json!({"jsonrpc": "2.0", "id": id, "method": "ping"})).await;
    }

    /// Reads until this id is answered, and returns the answer.
    async fn until(&mut self, id: u64) -> Value {
        loop {
            let line = self.peer.hear().await.expect("the session is there");
            let Some(answered) = line["id"].as_u64() else { continue };
            assert!(line.get("method").is_none() && line.get("error").is_none(), "{line}");
            *self.answers.entry(answered).or_default() += 1;
            if answered == id {
                return line;
            }
        }
    }
}

fn descriptors(daemon: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid.as_raw_nonzero())).expect("it is there").count()
}

/// How often it has been upgraded, by its own word.
async fn adopted(session: &mut Session, id: u64) -> u64 {
    let params = json!({"name": "health_snapshot", "arguments": {"render": "json", "detail": "full"}});
    session.peer.say(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})).await;
    let health = session.until(id).await;
    let health: Value =
        serde_json::from_str(health["result"]["content"][0]["text"].as_str().expect("a text")).expect("JSON");
    health["rollout"]["adopted"].as_u64().expect("a number")
}

#[tokio::test]
async fn many_sessions_and_their_consults_go_through_upgrades_and_every_id_is_answered_once() {
    let (count, consults) = (number("PHONE_OPUS_SESSIONS", 60), number("PHONE_OPUS_CONSULTS", 6));
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if maximum.is_some_and(|most| most < count as u64 + 200) {
        return println!("SKIPPED: this user may have {maximum:?} descriptors, too few for {count} clients");
    }
    let rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", consults.to_string()).with("PHONE_OPUS_LOG", "warn");
    let started = start(&rig, &[]).await;
    let mut sessions = Vec::new();
    for _ in 0..count {
        let mut peer = Peer::of(&rig).await;
        peer.open(&rig, &rig.work()).await;
        sessions.push(Session { peer, answers: BTreeMap::new() });
    }
    for (at, session) in sessions.iter_mut().take(consults).enumerate() {
        session.peer.call(2, &rig.waiting(&format!("begun-{at}"), "go")).await;
    }
    for at in 0..consults {
        rig.wait_for_sign(&format!("begun-{at}")).await;
    }
    let daemon = the_daemon(&rig).await;
    let before = descriptors(&daemon);
    for round in 1..=UPGRADES {
        let id = |what: u64| 10 * round + what;
        // One is asked before, and nobody has read its answer; one is asked of whoever serves at that moment.
        for session in &mut sessions {
            session.send_ping(id(1)).await;
        }
        let mut asking = Peer::of(&rig).await;
        assert_eq!(asking.asked(json!({"type": "reload"})).await, json!({"type": "ok", "to": "reload"}));
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        for session in &mut sessions {
            let sent = Instant::now();
            session.send_ping(id(2)).await;
            session.until(id(2)).await;
            longest = longest.max(sent.elapsed());
        }
        let all = began.elapsed();
        // By the last of them, so that everything before it has been read.
        let last = sessions.last_mut().expect("a session");
        let mut asked = 1000 * round;
        while adopted(last, asked).await < round {
            asked += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let upgraded = began.elapsed();
        for session in &mut sessions {
            session.send_ping(id(3)).await;
        }
        for session in &mut sessions {
            session.until(id(3)).await;
        }
        println!(
            "upgrade {round}: {count} sessions, {consults} consults; another image after at most {upgraded:?}; a ping of each \
             meanwhile took {all:?} in all, the longest one {longest:?}"
        );
        drop(asking);
        assert_eq!(the_daemon(&rig).await.pid, daemon.pid, "the same process");
    }
    rig.give_sign("go");
    for session in sessions.iter_mut().take(consults) {
        let answer = session.until(2).await;
        assert_eq!(response(&answer)["response"], "done", "{answer}");
    }
    // Whoever else was to be told something twice has been told by the time of a last answer.
    for session in &mut sessions {
        session.send_ping(9).await;
        session.until(9).await;
        assert!(session.answers.values().all(|count| *count == 1), "{:?}", session.answers);
    }
    let expected: Vec<u64> = (1..=UPGRADES).flat_map(|round| (1..=3).map(move |what| 10 * round + what)).collect();
    for session in &sessions {
        assert!(expected.iter().all(|id| session.answers.contains_key(id)), "{:?}", session.answers);
    }
    rig.expect_runs(consults);
    let after = descriptors(&daemon);
    println!("descriptors: {before} before, {after} after");
    assert!(after <= before, "{after} descriptors instead of {before}");
    assert_eq!(status(&rig).await["generation"], started["generation"]);
    drop(sessions);
    end(&rig).await;
}
