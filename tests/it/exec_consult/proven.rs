//! A consult over `wss://`: its server proves who it is, or nothing is started.
//!
//! Laws: L3, L7, L13.

use std::path::Path;

use serde_json::json;

use super::kit::{House, begun, write_token};
use crate::front::{Front, certificate};

const TOKEN: &str = "9d2e6f0b4a8c1357e9f1d3b5a7c90824";

#[tokio::test]
async fn a_consult_over_wss_is_answered_by_a_server_that_proves_who_it_is_and_by_no_other() {
    let mut house = House::behind_a_token(TOKEN).await;
    let token = house.rig.path("brought");
    write_token(&token, TOKEN, 0o600);
    let front = Front::before(house.exec().trim_matches('"').trim_start_matches("ws://").trim_end_matches('/')).await;
    let (address, name) =
        (format!("\"wss://127.0.0.1:{}\"", front.port()), format!("\"wss://localhost:{}\"", front.port()));
    let ours = certificate("authority.pem").display().to_string();

    house.rig.set("SSL_CERT_FILE", &ours);
    house.name_agent_by(&address, Some(&token));
    let mut host = house.rig.serve().await;
    let reply = host.consult(&house.rig.answering("42")).await.expect_success();
    assert_eq!(reply["response"], "42", "{:#}", reply.0);
    let job = host.consult_in_background(&house.rig.hanging("begun")).await;
    begun(&house, "begun").await;
    let cancelled = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!((cancelled.is_error(), cancelled.str("status")), (false, "cancelled"), "{:#}", cancelled.0);
    host.finish().await;
    house.rig.expect_runs(2);

    // Proven by an authority nobody here believes; proven to be somebody else.
    let another = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/exec/transport/tls_tests/authority.pem");
    for (exec, believed) in [(&address, another.display().to_string()), (&name, ours)] {
        house.rig.set("SSL_CERT_FILE", &believed);
        house.name_agent_by(exec, Some(&token));
        let mut host = house.rig.serve().await;
        let said = host.consult(&house.rig.answering("43")).await.expect_fault("exec_refused");
        assert!(said.text().contains("certificate"), "{exec}: {}", said.text());
        host.finish().await;
    }
    house.rig.expect_runs(2);
    house.close([]).await;
}
